//! How a guest ended.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Lines of the console that mean trouble in the guest's kernel.
const TROUBLE: [&str; 8] = [
    "Kernel panic",
    "BUG:",
    "Oops:",
    "WARNING: CPU",
    "general protection fault",
    "blocked for more than",
    "rcu: INFO:",
    "Out of memory:",
];

/// How a guest ended, and what is left of it.
pub struct Outcome {
    /// Exit code of the scenario; absent if it did not come to its end.
    pub exit: Option<i32>,
    /// Everything on the console, carriage returns removed.
    pub console: String,
    /// It ran into its limit and was killed.
    pub timed_out: bool,
    pub(crate) work: TempDir,
}

impl Outcome {
    /// An error with the end of the console unless the scenario succeeded and the kernel had no trouble.
    pub fn check(&self) -> anyhow::Result<()> {
        let trouble = self.kernel_trouble();
        if self.exit == Some(0) && trouble.is_none() && !self.timed_out {
            return Ok(());
        }
        let lines: Vec<&str> = self.console.lines().collect();
        let tail = lines[lines.len().saturating_sub(80)..].join("\n");
        let what = match (trouble, self.timed_out, self.exit) {
            (Some(line), ..) => format!("trouble in the guest's kernel ({line})"),
            (None, true, _) => "the guest did not end in time".into(),
            (None, false, Some(code)) => format!("the scenario failed with {code}"),
            (None, false, None) => "the guest ended before its scenario".into(),
        };
        bail!("{what}; its console ends with:\n{tail}")
    }

    /// The first line that tells of a bug, a hang or a lack of memory in the kernel.
    pub fn kernel_trouble(&self) -> Option<&str> {
        self.console.lines().find(|line| TROUBLE.iter().any(|sign| line.contains(sign)))
    }

    /// Directory with what the scenario put into /out.
    pub fn artefacts(&self) -> PathBuf {
        self.work.path().join("out")
    }

    /// One file of it, as text.
    pub fn artefact(&self, name: &str) -> anyhow::Result<String> {
        let path = self.artefacts().join(name);
        let bytes = std::fs::read(&path).with_context(|| format!("the scenario left no /out/{name}"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Unpacks what the guest sent, which is an archive of /out, cut short if it was killed meanwhile.
pub(crate) fn unpack(archive: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    if std::fs::metadata(archive).is_ok_and(|meta| meta.len() > 0) {
        let mut tar = std::process::Command::new("tar");
        // Not as in the guest, where everything belongs to root.
        crate::output_of(
            tar.arg("-xf").arg(archive).arg("-C").arg(to).args(["--no-same-owner", "--no-same-permissions"]),
        )?;
    }
    Ok(())
}
