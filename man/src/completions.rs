//! Shell completions, under the names that the shells look for.

use crate::Files;
use clap::Command;
use clap_complete::{Shell, generate};

/// Adds the completions of one tool.
pub fn add(mut command: Command, program: &str, files: &mut Files) -> anyhow::Result<()> {
    for (shell, path) in [
        (Shell::Bash, format!("completions/bash/{program}")),
        (Shell::Zsh, format!("completions/zsh/_{program}")),
        (Shell::Fish, format!("completions/fish/{program}.fish")),
    ] {
        let mut script = Vec::new();
        generate(shell, &mut command, program, &mut script);
        files.insert(path, String::from_utf8(script)?);
    }
    Ok(())
}
