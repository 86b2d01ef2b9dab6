//! The hypervisor information page (6.3, 8.7.1, 8.7.2).

use lab::entry::{hip, hip_bytes};
use lab::report::Outcome;
use lab::spec::hip;
use lab::{check, equal, tests};

tests! {
    "information page::signature, length and checksum" => checksum,
}

fn checksum() -> Outcome {
    equal!(hip(hip::SIGNATURE), hip::MAGIC);
    let bytes = hip_bytes();
    check!(bytes.len() >= hip::END && bytes.len() <= 4096 && bytes.len().is_multiple_of(2), "length {:#x}", bytes.len());
    let sum = bytes.chunks_exact(2).fold(0u16, |sum, pair| sum.wrapping_add(u16::from_le_bytes([pair[0], pair[1]])));
    equal!(sum, 0);
    Ok(())
}
