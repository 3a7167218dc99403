use super::*;

/// The ULPDU of the annotated dumps in RFC 5044 appendix A.4: a Send of 24 zero bytes.
fn rfc_send(msn: u8) -> Vec<u8> {
    let mut ulpdu = vec![0x41, 0x43];
    ulpdu.extend_from_slice(&[0; 8]);
    ulpdu.extend_from_slice(&[0, 0, 0, msn]);
    ulpdu.extend_from_slice(&[0; 4 + 24]);
    ulpdu
}

#[test]
fn rfc_5044_crc_of_an_fpdu_behind_a_marker() {
    let mut out = Vec::new();
    MarkerWriter::default().frame(&[&rfc_send(1)], true, &mut out);
    assert_eq!(&out[..8], [0, 0, 0, 0, 0, 0x2A, 0x41, 0x43]);
    assert_eq!(&out[out.len() - 4..], [0x52, 0x23, 0x99, 0x83]);
}

#[test]
fn rfc_5044_crc_of_an_fpdu_with_a_marker_inside() {
    let mut out = Vec::new();
    let mut writer = MarkerWriter {
        position: 512 - 0x14,
    };
    writer.frame(&[&rfc_send(2)], true, &mut out);
    assert_eq!(&out[0x14..0x18], [0, 0, 0, 0x14]);
    assert_eq!(&out[out.len() - 4..], [0x84, 0x92, 0x58, 0x98]);
}

#[test]
fn mulpdu_follows_the_segment_size() {
    // EMSS - (6 + EMSS mod 4), and with markers 4 more for each 512 octets begun.
    assert_eq!(mulpdu(1460, false), 1454);
    assert_eq!(mulpdu(1461, false), 1454);
    assert_eq!(mulpdu(1460, true), 1442);
    assert_eq!(mulpdu(100, false), MIN_MULPDU);
    assert_eq!(mulpdu(65483, false), MAX_MULPDU);
    for emss in 200..3000 {
        assert!(frame_len(mulpdu(emss, false)) <= emss, "{emss}");
    }
}

#[test]
fn frames_are_multiples_of_four() {
    for ulpdu in 0..70 {
        assert_eq!(frame_len(ulpdu) % 4, 0);
        assert!(padding(ulpdu) < 4);
    }
    assert_eq!((frame_len(38), frame_len(50), frame_len(46)), (44, 56, 52));
}

fn stream(crc: bool) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut writer = MarkerWriter::default();
    let mut out = Vec::new();
    let ulpdus: Vec<Vec<u8>> = [0, 18, 300, 502, 490, 498, 1442, 5000, 1, 2, 3, 506]
        .iter()
        .map(|len| (0..*len).map(|i| (i * 7) as u8).collect())
        .collect();
    for ulpdu in &ulpdus {
        let (a, b) = ulpdu.split_at(ulpdu.len() / 3);
        writer.frame(&[a, b], crc, &mut out);
    }
    (ulpdus, out)
}

fn read(stream: &[u8], step: usize, crc: bool) -> Result<Vec<Vec<u8>>, TermCode> {
    let mut reader = MarkerReader::default();
    let mut out = Vec::new();
    for mut part in stream.chunks(step) {
        while !part.is_empty() {
            if let Some(frame) = reader.next(&mut part, crc)? {
                let len = usize::from(u16::from_be_bytes([frame[0], frame[1]]));
                out.push(frame[2..2 + len].to_vec());
            }
        }
    }
    Ok(out)
}

#[test]
fn m08_markers_go_in_and_out_with_any_segmentation() {
    for crc in [false, true] {
        let (ulpdus, bytes) = stream(crc);
        for step in [1, 2, 3, 5, 511, 512, 513, 4096, bytes.len()] {
            assert_eq!(read(&bytes, step, crc).as_ref(), Ok(&ulpdus), "{step}");
        }
    }
}

#[test]
fn a_marker_that_points_elsewhere_is_an_error() {
    let (_, mut bytes) = stream(true);
    bytes[512 + 3] ^= 4;
    assert_eq!(read(&bytes, 100, true), Err(TermCode::MPA_MARKER));
}

#[test]
fn the_crc_covers_the_markers_reserved_half() {
    let (_, mut bytes) = stream(true);
    bytes[512] ^= 1;
    assert_eq!(read(&bytes, 100, true), Err(TermCode::MPA_CRC));
    assert!(read(&bytes, 100, false).is_ok());
}
