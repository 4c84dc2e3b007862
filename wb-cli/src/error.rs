//! Errors as people read them: `PROGRAM: error: what happened: why; next step`.

use std::error::Error;
use std::fmt;

/// The command line or the config file is wrong: the tool ends with its usage exit code.
#[derive(Debug)]
pub struct UsageError(pub String);

impl UsageError {
    /// An [`anyhow::Error`] that makes the tool end with its usage exit code.
    pub fn raise(message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(UsageError(message.into()))
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for UsageError {}

/// An error together with what its reader can do about it.
#[derive(Debug)]
struct Advised {
    step: String,
    source: anyhow::Error,
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "next step: {}", self.step)
    }
}

impl Error for Advised {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_ref())
    }
}

/// Adds the next step to an error.
pub trait NextStep<T> {
    /// Says what the reader can do: printed after the message, whatever context is added later. The step nearest to
    /// the reader (added last) wins if there are several.
    fn next_step(self, step: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> NextStep<T> for Result<T, E> {
    fn next_step(self, step: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|e| anyhow::Error::new(Advised { step: step.into(), source: e.into() }))
    }
}

/// The whole error in one line: the chain of causes, then the next step.
pub fn describe(err: &anyhow::Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut step = None;
    for cause in err.chain() {
        if let Some(advised) = cause.downcast_ref::<Advised>() {
            step.get_or_insert_with(|| advised.step.clone());
            continue;
        }
        let text = cause.to_string();
        // Some libraries repeat their source in their own text; once is enough.
        if !causes.last().is_some_and(|last| last.ends_with(&text)) {
            causes.push(text);
        }
    }
    let mut line = causes.join(": ");
    if let Some(step) = step {
        line.push_str(": ");
        line.push_str(&step);
    }
    line
}

/// True if the error, or what caused it, is a [`UsageError`].
pub fn is_usage(err: &anyhow::Error) -> bool {
    err.chain().any(|cause| cause.is::<UsageError>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn the_next_step_comes_last_whatever_context_was_added() {
        let err = Err::<(), _>(std::io::Error::from_raw_os_error(libc_eacces()))
            .context("cannot open /dev/sdz")
            .next_step("run it as root")
            .context("format failed")
            .unwrap_err();
        let line = describe(&err);
        assert_eq!(line, "format failed: cannot open /dev/sdz: Permission denied (os error 13): run it as root");
        assert!(!is_usage(&err));
    }

    fn libc_eacces() -> i32 {
        nix::errno::Errno::EACCES as i32
    }

    #[test]
    fn a_usage_error_is_found_below_context_and_advice() {
        let err =
            Err::<(), _>(UsageError::raise("no cache named")).next_step("name one").context("wb-dump").unwrap_err();
        assert!(is_usage(&err));
        assert_eq!(describe(&err), "wb-dump: no cache named: name one");
    }
}
