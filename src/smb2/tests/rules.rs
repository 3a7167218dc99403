//! Each rule is broken once.

use super::*;

fn encoded_read(rules: &ChannelRules) -> Vec<u8> {
    let mut message = read_request();
    let placement = plain(32, vec![piece(0, 1, 16), piece(64, 2, 16)]);
    placement.encode_read(&mut message, rules).unwrap();
    message
}

fn encoded_write(transform: Option<CryptoTransform>) -> Vec<u8> {
    let mut message = write_request();
    let placement = Placement {
        transform,
        ..plain(32, vec![piece(0, 1, 16), piece(64, 2, 16)])
    };
    placement
        .encode_write(&mut message, &rules(Dialect::Smb311))
        .unwrap();
    message
}

/// The error of a request after `bytes` were put at `at`.
fn broken_request(mut message: Vec<u8>, at: usize, bytes: &[u8]) -> RequestError {
    let rules = rules(Dialect::Smb311);
    let write = message[12] == 9;
    message[at..at + bytes.len()].copy_from_slice(bytes);
    match write {
        true => Placement::parse_write(&message, &rules).unwrap_err(),
        false => Placement::parse_read(&message, &rules).unwrap_err(),
    }
}

#[test]
fn channels_by_dialect() {
    use Channel::*;
    use Operation::*;
    let table = [
        (Dialect::Smb300, Read, [true, true, false, false]),
        (Dialect::Smb300, Write, [true, true, false, false]),
        (Dialect::Smb302, Read, [true, true, true, false]),
        (Dialect::Smb302, Write, [true, true, true, false]),
        (Dialect::Smb311, Read, [true, true, true, false]),
        (Dialect::Smb311, Write, [true, true, true, true]),
    ];
    for (dialect, operation, expected) in table {
        let allowed = [None, RdmaV1, RdmaV1Invalidate, RdmaTransform]
            .map(|channel| rules(dialect).allows(operation, channel));
        assert_eq!(allowed, expected, "{dialect:?} {operation:?}");
        assert_eq!(Dialect::from_revision(dialect.revision()), Some(dialect));
    }
    let none_negotiated = ChannelRules {
        dialect: Dialect::Smb311,
        transforms: NO_TRANSFORMS,
    };
    assert!(!none_negotiated.allows(Write, RdmaTransform));
    assert_eq!(Dialect::from_revision(0x0210), Option::None);
    for value in 0..4 {
        assert_eq!(Channel::from_value(value).map(Channel::value), Some(value));
    }
}

#[test]
fn invalidation_is_refused_on_3_0() {
    let mut message = encoded_read(&rules(Dialect::Smb311));
    message[100] = 2;
    let channel = Channel::RdmaV1Invalidate;
    let refused = Err(RequestError::ChannelNotAllowed { channel });
    assert_eq!(
        Placement::parse_read(&message, &rules(Dialect::Smb300)),
        refused
    );
    assert!(Placement::parse_read(&message, &rules(Dialect::Smb302)).is_ok());
}

#[test]
fn no_channel_is_no_placement() {
    let rules = rules(Dialect::Smb311);
    assert_eq!(Placement::parse_read(&read_request(), &rules), Ok(None));
    assert_eq!(Placement::parse_write(&write_request(), &rules), Ok(None));
}

#[test]
fn rules_of_both_requests() {
    use RequestError::*;
    for (message, at) in [
        (encoded_read(&rules(Dialect::Smb311)), 100),
        (encoded_write(None), 96),
    ] {
        let broken = |at, bytes: &[u8]| broken_request(message.clone(), at, bytes);
        assert_eq!(broken(0, &[0xFD]), ProtocolId);
        assert_eq!(
            broken(13, &[1]),
            Command {
                found: u16::from(message[12]) | 0x0100
            }
        );
        assert_eq!(broken(64, &[48]), StructureSize { found: 48 });
        assert_eq!(broken(at, &[4]), UnknownChannel { value: 4 });
        assert_eq!(broken(at + 8, &[0, 0]), InfoOffsetZero);
        assert_eq!(broken(at + 8, &[111, 0]), InfoInsideBody { offset: 111 });
        assert_eq!(broken(at + 10, &[0, 0]), InfoLengthZero);
        assert_eq!(broken(at + 10, &[31, 0]), DescriptorCutOff { length: 31 });
        assert_eq!(
            broken(at + 8, &[0xFF; 4]),
            InfoBeyondMessage {
                offset: 0xFFFF,
                length: 0xFFFF,
                len: 144
            }
        );
        assert_eq!(
            broken(at + 8, &[113, 0]),
            InfoBeyondMessage {
                offset: 113,
                length: 32,
                len: 144
            }
        );
    }
    let rules = rules(Dialect::Smb311);
    let short = blank(8, 49, 111);
    assert_eq!(
        Placement::parse_read(&short, &rules),
        Err(TooShort { len: 111 })
    );
    assert_eq!(
        broken_request(encoded_read(&rules), 100, &[3]),
        ChannelNotAllowed {
            channel: Channel::RdmaTransform
        }
    );
    assert_eq!(
        broken_request(encoded_read(&rules), 68, &[0]),
        NothingToMove
    );
}

#[test]
fn rules_of_writes() {
    use RequestError::*;
    let broken = |at, bytes: &[u8]| broken_request(encoded_write(None), at, bytes);
    assert_eq!(broken(68, &[1]), LengthNotZero { length: 1 });
    assert_eq!(broken(66, &[112]), DataOffsetNotZero { offset: 112 });
    assert_eq!(broken(100, &[0; 4]), NothingToMove);
    assert_eq!(
        broken(100, &[33]),
        DescriptorsTooSmall {
            capacity: 32,
            needed: 33
        }
    );
    assert_eq!(broken(112 + 12, &[0; 4]), FirstDescriptorEmpty);
}

#[test]
fn lengths_that_overflow_32_bits_are_summed() {
    let placement = plain(u32::MAX, vec![piece(u64::MAX, 1, u32::MAX); 4095]);
    let rules = rules(Dialect::Smb300);
    let mut message = write_request();
    placement.encode_write(&mut message, &rules).unwrap();
    assert_eq!(placement.capacity(), 4095 * u64::from(u32::MAX));
    assert_eq!(
        Placement::parse_write(&message, &rules),
        Ok(Some(placement))
    );
}

#[test]
fn rules_of_transforms() {
    use TransformError::*;
    // SMB2_RDMA_TRANSFORM is at 112, SMB2_RDMA_CRYPTO_TRANSFORM at 128, descriptors at 168.
    let broken =
        |at, bytes: &[u8]| match broken_request(encoded_write(Some(encryption())), at, bytes) {
            RequestError::Transform(error) => error,
            error => panic!("{error:?}"),
        };
    assert_eq!(broken(116, &[0]), InnerChannel { value: 0 });
    assert_eq!(broken(116, &[3]), InnerChannel { value: 3 });
    assert_eq!(broken(120, &[0]), Count { count: 0 });
    assert_eq!(broken(120, &[2]), Count { count: 2 });
    assert_eq!(broken(128, &[3]), UnknownType { value: 3 });
    assert_eq!(broken(130, &[17]), SignatureTooLong { length: 17 });
    assert_eq!(
        broken(132, &[200]),
        CryptoTooShort {
            needed: 224,
            len: 72
        }
    );
    assert_eq!(broken(112, &[60]), DescriptorsUnaligned { offset: 60 });
    assert_eq!(
        broken(112, &[48]),
        DescriptorsInsideTransforms { offset: 48 }
    );
    assert_eq!(
        broken(112, &[64]),
        DescriptorsBeyondInfo {
            offset: 64,
            length: 32,
            len: 88
        }
    );
    assert_eq!(broken(106, &[15]), TransformTooShort { len: 15 });
    assert_eq!(broken(106, &[23]), CryptoTooShort { needed: 8, len: 7 });

    let no_descriptors = broken_request(encoded_write(Some(encryption())), 114, &[0]);
    assert_eq!(no_descriptors, RequestError::NoDescriptors);

    let signing_only = ChannelRules {
        dialect: Dialect::Smb311,
        transforms: TransformCapabilities {
            signing: true,
            encryption: false,
        },
    };
    let kind = TransformType::Encryption;
    let refused = RequestError::Transform(NotNegotiated { kind });
    let message = encoded_write(Some(encryption()));
    assert_eq!(
        Placement::parse_write(&message, &signing_only),
        Err(refused)
    );
}

#[test]
fn requests_that_cannot_be_made() {
    use RequestError::*;
    let v311 = rules(Dialect::Smb311);
    let refused = |placement: Placement, rules: &ChannelRules, mut message: Vec<u8>| {
        let before = message.clone();
        let error = match message[12] {
            8 => placement.encode_read(&mut message, rules),
            _ => placement.encode_write(&mut message, rules),
        };
        assert_eq!(message, before);
        error.unwrap_err()
    };
    let one = || vec![piece(0, 1, 16)];
    let transformed = || Placement {
        transform: Some(encryption()),
        ..plain(16, one())
    };
    assert_eq!(
        refused(plain(0, one()), &v311, read_request()),
        NothingToMove
    );
    assert_eq!(
        refused(plain(1, vec![]), &v311, write_request()),
        NoDescriptors
    );
    assert_eq!(
        refused(plain(17, one()), &v311, read_request()),
        DescriptorsTooSmall {
            capacity: 16,
            needed: 17
        }
    );
    assert_eq!(
        refused(plain(16, vec![piece(0, 1, 1); 4096]), &v311, read_request()),
        TooManyDescriptors { count: 4096 }
    );
    let long = [read_request(), vec![0]].concat();
    assert_eq!(
        refused(plain(16, one()), &v311, long),
        BufferInUse { len: 114 }
    );
    let channel = Channel::RdmaTransform;
    assert_eq!(
        refused(transformed(), &v311, read_request()),
        ChannelNotAllowed { channel }
    );
    assert_eq!(
        refused(transformed(), &rules(Dialect::Smb302), write_request()),
        ChannelNotAllowed { channel }
    );
    let mut long_signature = transformed();
    long_signature.transform.as_mut().unwrap().signature.push(0);
    assert_eq!(
        refused(long_signature, &v311, write_request()),
        Transform(TransformError::SignatureTooLong { length: 17 })
    );
    let mut long_nonce = transformed();
    long_nonce.transform.as_mut().unwrap().nonce = vec![0; 65_535];
    assert_eq!(
        refused(long_nonce, &v311, write_request()),
        Transform(TransformError::NonceTooLong { length: 65_535 })
    );
}

#[test]
fn rules_of_responses() {
    use ResponseError::*;
    let v311 = rules(Dialect::Smb311);
    let encoded = |transform| {
        let mut message = read_response();
        PlacedRead {
            placed: 16,
            transform,
        }
        .encode(&mut message, &v311)
        .unwrap();
        message
    };
    let broken = |mut message: Vec<u8>, at: usize, byte, rules: &ChannelRules| {
        message[at] = byte;
        PlacedRead::parse(&message, 16, rules).unwrap_err()
    };
    assert_eq!(broken(encoded(None), 0, 0, &v311), ProtocolId);
    assert_eq!(broken(encoded(None), 12, 9, &v311), Command { found: 9 });
    assert_eq!(
        broken(encoded(None), 64, 9, &v311),
        StructureSize { found: 9 }
    );
    assert_eq!(
        broken(encoded(None), 68, 1, &v311),
        DataInMessage { length: 1 }
    );
    assert_eq!(
        broken(encoded(None), 72, 17, &v311),
        MoreThanRequested {
            placed: 17,
            requested: 16
        }
    );
    assert_eq!(
        PlacedRead::parse(&[0; 79], 1, &v311),
        Err(TooShort { len: 79 })
    );

    // 52 bytes, padded to 56.
    let message = || encoded(Some(encryption()));
    assert_eq!(
        broken(message(), 66, 79, &v311),
        TransformOutsideBuffer {
            offset: 79,
            length: 56,
            len: 136
        }
    );
    assert_eq!(
        broken(message(), 68, 57, &v311),
        TransformOutsideBuffer {
            offset: 80,
            length: 57,
            len: 136
        }
    );
    for at in [80, 82, 84] {
        assert_eq!(broken(message(), at, 1, &v311), TransformWithDescriptors);
    }
    assert_eq!(
        broken(message(), 88, 2, &v311),
        Transform(TransformError::Count { count: 2 })
    );
    let no_transforms = ChannelRules {
        dialect: Dialect::Smb311,
        transforms: NO_TRANSFORMS,
    };
    assert_eq!(
        broken(message(), 0, 0xFE, &no_transforms),
        TransformNotNegotiated
    );
    // Before 3.1.1 nobody looks at the flags.
    assert_eq!(
        broken(message(), 0, 0xFE, &rules(Dialect::Smb302)),
        DataInMessage { length: 56 }
    );
    // Without the padding it is as good.
    let mut unpadded = message();
    unpadded.truncate(132);
    unpadded[68] = 52;
    assert!(PlacedRead::parse(&unpadded, 16, &v311).is_ok());

    let mut in_use = [read_response(), vec![0]].concat();
    let response = PlacedRead {
        placed: 1,
        transform: None,
    };
    assert_eq!(
        response.encode(&mut in_use, &v311),
        Err(BufferInUse { len: 82 })
    );
}

#[test]
fn rules_of_capabilities() {
    use CapabilitiesError::*;
    let request = |text| TransformCapabilities::parse_request(&hex(text));
    assert_eq!(
        request("0100 0000 000000"),
        Err(TooShort { needed: 8, len: 7 })
    );
    assert_eq!(request("0000 0000 00000000"), Err(Empty));
    assert_eq!(
        request("ffff 0000 00000000 0100"),
        Err(TooShort {
            needed: 131_078,
            len: 10
        })
    );
    let signing = TransformCapabilities {
        signing: true,
        encryption: false,
    };
    let response = |text| TransformCapabilities::parse_response(&hex(text), signing);
    assert_eq!(response("0100 0000 00000000 0000"), Ok(NO_TRANSFORMS));
    assert_eq!(response("0100 0000 00000000 0200"), Ok(signing));
    assert_eq!(
        response("0100 0000 00000000 0100"),
        Err(NotOffered { id: 1 })
    );
    assert_eq!(
        response("0100 0000 00000000 0300"),
        Err(NotOffered { id: 3 })
    );
    assert_eq!(
        response("0200 0000 00000000 0200 0100"),
        Err(MoreThanOffered { count: 2 })
    );
    assert_eq!(ALL.intersect(signing), signing);
    assert_eq!(signing.intersect(NO_TRANSFORMS), NO_TRANSFORMS);
}

#[test]
fn rules_of_interfaces() {
    use InterfaceError::*;
    assert_eq!(NetworkInterface::parse_list(&[]), Ok(vec![]));
    assert_eq!(
        NetworkInterface::parse_list(&[0; 151]),
        Err(TooShort { at: 0, len: 151 })
    );
    let next = |next: u32| {
        let mut output = vec![0; 304];
        output[..4].copy_from_slice(&next.to_le_bytes());
        NetworkInterface::parse_list(&output)
    };
    assert_eq!(next(144), Err(NextInsideEntry { next: 144 }));
    assert_eq!(next(153), Err(NextUnaligned { next: 153 }));
    assert_eq!(next(160), Err(TooShort { at: 160, len: 144 }));
    assert_eq!(next(312), Err(NextBeyondList { next: 312 }));
    assert_eq!(next(0xFFFF_FFF8), Err(NextBeyondList { next: 0xFFFF_FFF8 }));
    // An address family we do not know.
    assert_eq!(next(152), Ok(vec![]));
}
