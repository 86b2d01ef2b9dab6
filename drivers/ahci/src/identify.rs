//! What IDENTIFY DEVICE gives (ACS-3, 7.12.7): 256 words of 16 bits.

use crate::controller::Error;
use alloc::string::{String, ToString};
use runtime::block::SECTOR;

/// What the disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Bytes of a logical sector.
    pub block: u32,
    /// A volatile write cache is on.
    pub volatile_cache: bool,
    /// It writes past its cache on demand.
    pub force_unit_access: bool,
}

impl Identity {
    /// Reads the words.
    pub fn new(words: &[u16; 256]) -> Result<Self, Error> {
        // Word 83 is valid if bits 15:14 are 01; bit 10: 48-bit addresses.
        let valid = |word: u16| word >> 14 == 1;
        if !valid(words[83]) || words[83] & 1 << 10 == 0 {
            return Err(Error::NoLongAddresses);
        }
        // Word 106, bit 12: logical sectors are longer than 256 words, and words 117 and 118 tell how long.
        let long = valid(words[106]) && words[106] & 1 << 12 != 0;
        let block = if long { (u32::from(words[117]) | u32::from(words[118]) << 16).saturating_mul(2) } else { 512 };
        if !block.is_power_of_two() || !(512..=4096).contains(&block) {
            return Err(Error::Blocks(block));
        }
        let count = words[100..104].iter().rev().fold(0, |value, &word| value << 16 | u64::from(word));
        let sectors = count.checked_mul(u64::from(block) / SECTOR).filter(|&sectors| sectors != 0);
        Ok(Self {
            model: text(&words[27..47]),
            serial: text(&words[10..20]),
            sectors: sectors.ok_or(Error::Empty)?,
            block,
            volatile_cache: words[85] & 1 << 5 != 0,
            force_unit_access: valid(words[84]) && words[84] & 1 << 6 != 0,
        })
    }
}

/// Printable characters, two in each word, the first in its upper half.
fn text(words: &[u16]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_be_bytes());
    let graphic = |byte: u8| if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '?' };
    bytes.map(graphic).collect::<String>().trim().to_string()
}
