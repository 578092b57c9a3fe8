//! Names: plain data that says where bytes lie.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::os;

/// What every name of this crate in shared memory begins with.
pub const PREFIX: &str = "theus-";

/// What comes before the name of a freed segment, whose memory waits for the next one.
pub(crate) const HIDDEN: &str = ".";

const ID_LENGTH: usize = 12;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A session's id: 12 characters of lower-case base32, 60 random bits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// Draws a new id from the kernel's random numbers.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel has none to give.
    pub fn random() -> Result<Self> {
        let mut bytes = [0_u8; ID_LENGTH];
        os::random(&mut bytes)?;
        let letters = bytes.iter().map(|byte| ALPHABET[usize::from(byte % 32)]);
        Ok(Self(letters.map(char::from).collect()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the session's lock file.
    #[must_use]
    pub fn lock_name(&self) -> String {
        format!("{PREFIX}{self}.lock")
    }

    /// The session whose lock file has this name; `None` if it is not a lock's.
    pub(crate) fn of_lock(name: &str) -> Option<Self> {
        let id = name.strip_prefix(PREFIX)?.strip_suffix(".lock")?;
        id.parse().ok()
    }

    /// The name of the session's segment `number`; 0 is the catalog.
    #[must_use]
    pub fn segment(&self, number: u64) -> SegmentName {
        SegmentName {
            session: self.clone(),
            number,
            hidden: false,
        }
    }
}

impl FromStr for SessionId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() == ID_LENGTH && text.bytes().all(|byte| ALPHABET.contains(&byte)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid(text, "session"))
        }
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A segment's name, `theus-<session>-<number>`: at most 30 characters, never used twice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentName {
    /// The session that made it.
    pub session: SessionId,
    /// Its number in the session.
    pub number: u64,
    /// Whether it was freed, and its memory waits for the next one.
    hidden: bool,
}

impl SegmentName {
    /// The name of the segment's file when the segment is gone: [`HIDDEN`] before the name.
    pub(crate) fn hide(&self) -> Self {
        Self {
            hidden: true,
            ..self.clone()
        }
    }

    /// Whether this is the name of a freed segment's file, which nobody opens.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// The segment or freed segment whose file has this name.
    pub(crate) fn of_file(name: &str) -> Option<Self> {
        match name.strip_prefix(HIDDEN) {
            Some(rest) => rest.parse().ok().map(|name: Self| name.hide()),
            None => name.parse().ok(),
        }
    }

    /// Where the segment lies while it is published.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        os::path_of(&self.to_string())
    }
}

impl FromStr for SegmentName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || invalid(text, "segment");
        let rest = text.strip_prefix(PREFIX).ok_or_else(wrong)?;
        let (session, digits) = rest.split_once('-').ok_or_else(wrong)?;
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let name = Self {
            session: session.parse().map_err(|_| wrong())?,
            number,
            hidden: false,
        };
        // Only the one spelling: no sign, no leading zero.
        if name.to_string() == text {
            Ok(name)
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = if self.hidden { HIDDEN } else { "" };
        write!(
            formatter,
            "{hidden}{PREFIX}{}-{}",
            self.session, self.number
        )
    }
}

fn invalid(name: &str, expected: &'static str) -> Error {
    Error::InvalidName {
        name: name.to_owned(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        let name = SessionId::random().unwrap().segment(17);
        let text = name.to_string();
        assert!(text.len() <= 30);
        assert_eq!(text.parse::<SegmentName>().unwrap(), name);
        for wrong in ["+17", "017", "", "17x", "-17"] {
            let text = format!("theus-{}-{wrong}", name.session);
            assert!(text.parse::<SegmentName>().is_err(), "{text}");
        }
        let hidden = format!(".{text}");
        assert!(hidden.parse::<SegmentName>().is_err());
        assert_eq!(SegmentName::of_file(&hidden), Some(name.hide()));
        assert_eq!(name.hide().to_string(), hidden);
    }
}
