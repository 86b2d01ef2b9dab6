//! A TOML file that a user wrote, and errors that point into it.

use std::fmt::Display;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow};
use serde::de::DeserializeOwned;

use crate::workspace;

/// A file's text, kept so that errors can name lines.
pub struct Source {
    /// Where it is.
    pub path: PathBuf,
    text: String,
}

impl Source {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", workspace::shown(path)))?;
        Ok(Self { path: path.to_path_buf(), text })
    }

    /// Parses it; unknown keys and wrong types are errors where the type says so.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        toml::from_str(&self.text).map_err(|error| {
            let message = error.message().replace('\n', "; ");
            self.error(error.span().unwrap_or(0..0), message)
        })
    }

    /// `FILE:LINE:COLUMN: MESSAGE` for a place in the file.
    pub fn error(&self, place: Range<usize>, message: impl Display) -> Error {
        let before = &self.text[..place.start.min(self.text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        anyhow!("{}:{line}:{column}: {message}", workspace::shown(&self.path))
    }

    /// A path written in the file, relative to the file.
    pub fn beside(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }
}

#[cfg(test)]
impl Source {
    /// A file named `system.toml` that is nowhere.
    pub fn from_text(text: &str) -> Self {
        Self { path: "system.toml".into(), text: text.into() }
    }
}
