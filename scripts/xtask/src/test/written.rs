//! Systems that a test describes itself, because the description is what it is about.

use anyhow::Result;

use super::Lab;
use super::boot::Outcome;
use crate::workspace;

impl Lab<'_> {
    /// Writes a system file and gives its path, for [`Lab::boot`].
    pub fn write_system(&self, text: &str) -> Result<String> {
        let file = workspace::folder(&format!("run/{}", self.name))?.join("system.toml");
        workspace::write(&file, text.as_bytes())?;
        Ok(file.display().to_string())
    }
}

impl Outcome {
    /// The first line that contains this is before the first that contains that.
    pub fn says_before(&self, first: &str, second: &str) -> Result<()> {
        let place = |text: &str| self.says(text).map(|_| self.lines.iter().position(|line| line.contains(text)));
        if place(first)? < place(second)? {
            return Ok(());
        }
        Err(self.failure(&format!("{second:?} stands before {first:?}")))
    }
}
