//! The structures of [MS-SMBD] 2.2: no bytes panic, and what is read is what would be written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smbdirect::proto::wire::{
    BufferDescriptorV1, DataTransfer, NegotiateRequest, NegotiateResponse,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = NegotiateRequest::parse(bytes) {
        assert_eq!(NegotiateRequest::parse(&request.encode()), Ok(request));
    }
    if let Ok(response) = NegotiateResponse::parse(bytes) {
        assert_eq!(NegotiateResponse::parse(&response.encode()), Ok(response));
    }
    if let Ok(header) = DataTransfer::parse(bytes) {
        assert_eq!(DataTransfer::parse(&header.encode()), Ok(header));
        if let Ok(range) = header.payload(bytes.len()) {
            let payload = bytes.get(range).expect("inside the message");
            assert_eq!(payload.len(), header.data_length as usize);
        }
        let total = u64::from(header.data_length) + u64::from(header.remaining_data_length);
        assert_eq!(header.total(), total);
    }
    match BufferDescriptorV1::parse_array(bytes) {
        Ok(descriptors) => {
            let again: Vec<u8> = descriptors.iter().flat_map(|d| d.encode()).collect();
            assert_eq!(again, bytes);
        }
        Err(_) => assert_ne!(bytes.len() % BufferDescriptorV1::LEN, 0),
    }
});
