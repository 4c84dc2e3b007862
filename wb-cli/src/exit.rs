//! Exit codes: one type for wb-check, which answers as fsck(8) does, and one for every other tool.

/// How a tool's outcome becomes the process's exit code.
pub trait ExitStatus: Sized {
    /// The outcome after an error.
    const FAILED: Self;
    /// The outcome after a wrong command line.
    const USAGE: Self;
    /// Codes and their meaning, as help and man page show them.
    const MEANINGS: &'static [(u8, &'static str)];
    /// A sentence that follows the list of codes.
    const NOTE: &'static str;
    /// The exit code of the process.
    fn code(&self) -> u8;
}

/// Exit codes of every tool but wb-check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// Something failed; a message on stderr says what.
    Failed = 1,
    /// The command line or the config file cannot be understood; nothing was touched.
    Usage = 2,
}

impl ExitStatus for Exit {
    const FAILED: Exit = Exit::Failed;
    const USAGE: Exit = Exit::Usage;
    const MEANINGS: &'static [(u8, &'static str)] = &[
        (Exit::Done as u8, "Done."),
        (Exit::Failed as u8, "Failed; the message on stderr names what failed and the next step."),
        (Exit::Usage as u8, "The command line or the config file is wrong. No device was touched."),
    ];
    const NOTE: &'static str = "";
    fn code(&self) -> u8 {
        *self as u8
    }
}

/// One bit of wb-check's exit code, as in fsck(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CheckBit {
    /// Errors were found and corrected.
    Corrected = 1,
    /// Errors were found and left.
    ErrorsLeft = 4,
    /// The check itself could not be done (device missing, in use, unreadable, not a cache).
    Operational = 8,
    /// The command line or the config file cannot be understood.
    Usage = 16,
}

/// Exit code of wb-check: the sum of its [`CheckBit`]s; 0 is a clean cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CheckExit(u8);

impl CheckExit {
    /// No error found.
    pub const CLEAN: CheckExit = CheckExit(0);
    /// This outcome and `bit`.
    pub const fn with(self, bit: CheckBit) -> CheckExit {
        CheckExit(self.0 | bit as u8)
    }
    /// True if `bit` is part of the outcome.
    pub const fn has(self, bit: CheckBit) -> bool {
        self.0 & bit as u8 != 0
    }
}

impl From<CheckBit> for CheckExit {
    fn from(bit: CheckBit) -> CheckExit {
        CheckExit::CLEAN.with(bit)
    }
}

impl ExitStatus for CheckExit {
    const FAILED: CheckExit = CheckExit::CLEAN.with(CheckBit::Operational);
    const USAGE: CheckExit = CheckExit::CLEAN.with(CheckBit::Usage);
    const MEANINGS: &'static [(u8, &'static str)] = &[
        (0, "The cache is clean. A torn tail after a crash is a note, not an error."),
        (CheckBit::Corrected as u8, "Errors were found and corrected."),
        (CheckBit::ErrorsLeft as u8, "Errors were found and left as they are."),
        (
            CheckBit::Operational as u8,
            "The check could not be done: device missing, in use, unreadable or not a cache.",
        ),
        (CheckBit::Usage as u8, "The command line or the config file is wrong. No device was touched."),
    ];
    const NOTE: &'static str = "The codes are those of fsck(8); the exit status is the sum of all that apply.";
    fn code(&self) -> u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_what_the_manual_promises() {
        assert_eq!([Exit::Done.code(), Exit::Failed.code(), Exit::Usage.code()], [0, 1, 2]);
        assert_eq!((CheckExit::FAILED.code(), CheckExit::USAGE.code()), (8, 16));
        let both = CheckExit::from(CheckBit::Corrected).with(CheckBit::ErrorsLeft);
        assert_eq!(both.code(), 5);
        assert!(both.has(CheckBit::Corrected) && !both.has(CheckBit::Operational));
    }

    #[test]
    fn every_code_has_a_meaning() {
        assert!(Exit::MEANINGS.iter().map(|m| m.0).eq([0, 1, 2]));
        assert!(CheckExit::MEANINGS.iter().map(|m| m.0).eq([0, 1, 4, 8, 16]));
    }
}
