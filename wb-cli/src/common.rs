//! Options that every tool has, and the end of every tool's help.

use crate::config::Config;
use crate::error::{NextStep, UsageError};
use crate::exit::ExitStatus;
use clap::{ArgAction, Args};
use std::path::{Path, PathBuf};

/// Where the config file lies unless `--config` or `$WB_CONFIG` names another.
pub const CONFIG_PATH_DEFAULT: &str = "/etc/writeboost.toml";

/// Options common to all tools.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Common options")]
pub struct CommonArgs {
    /// Print one JSON document on stdout in place of text for people
    #[arg(long, global = true)]
    pub json: bool,

    /// Log more on stderr: -v says what is done, -vv how, -vvv everything. WB_LOG takes a filter like
    /// `wb_core::log=trace,info` and has precedence
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// Read this config file; without it $WB_CONFIG, then /etc/writeboost.toml
    #[arg(long, global = true, value_name = "FILE", env = "WB_CONFIG", hide_env = true)]
    pub config: Option<PathBuf>,
}

impl CommonArgs {
    /// The config file and its path. `None` if none was named and the default one does not exist.
    pub fn load_config(&self) -> anyhow::Result<Option<(PathBuf, Config)>> {
        if let Some(path) = &self.config {
            return Ok(Some((path.clone(), Config::load(path)?)));
        }
        let path = Path::new(CONFIG_PATH_DEFAULT);
        if !path.exists() {
            return Ok(None);
        }
        Ok(Some((path.to_path_buf(), Config::load(path)?)))
    }

    /// The cache to work on: `named`, or the only one of the config file. `option` is how this tool names a cache,
    /// for the error text ("CACHE", "--cache CACHE").
    pub fn cache_or_config(&self, named: Option<PathBuf>, option: &str) -> anyhow::Result<PathBuf> {
        match named {
            Some(path) => Ok(path),
            None => Ok(self.only_cache(option)?.device),
        }
    }

    /// The only cache of the config file; an error that says what to name if there is none or several.
    pub fn only_cache(&self, option: &str) -> anyhow::Result<crate::config::CacheConfig> {
        let Some((path, mut config)) = self.load_config()? else {
            return Err(UsageError::raise(format!("no cache named, and there is no {CONFIG_PATH_DEFAULT}")))
                .next_step(format!("name the cache as {option}, or a config file with --config FILE"));
        };
        match config.caches.len() {
            1 => Ok(config.caches.remove(0)),
            0 => Err(UsageError::raise(format!("no cache named, and {} has no [[cache]]", path.display())))
                .next_step(format!("name the cache as {option}")),
            _ => {
                let known: Vec<String> =
                    config.caches.iter().map(|c| format!("{} ({})", c.device.display(), c.name)).collect();
                Err(UsageError::raise(format!("no cache named, and {} has several", path.display())))
                    .next_step(format!("name one as {option}: {}", known.join(", ")))
            }
        }
    }
}

/// One example of a tool's help: a command and what it does.
#[derive(Debug, Clone, Copy)]
pub struct Example {
    /// The command as typed.
    pub command: &'static str,
    /// What it does, one sentence.
    pub does: &'static str,
}

/// The sections EXAMPLES and EXIT STATUS of a tool's `--help`.
pub fn help_tail<E: ExitStatus>(examples: &[Example]) -> String {
    let mut text = String::from("Examples:\n");
    for example in examples {
        text.push_str(&format!("  {}\n      {}\n", example.command, example.does));
    }
    text.push_str("\nExit status:\n");
    for (code, meaning) in E::MEANINGS {
        text.push_str(&format!("  {code:>2}  {meaning}\n"));
    }
    if !E::NOTE.is_empty() {
        text.push_str(&format!("  {}\n", E::NOTE));
    }
    text.push_str(
        "\nSizes are bytes, or carry a unit: K, M, G, T and KiB ... TiB are powers of 1024, kB ... TB powers of 1000.",
    );
    text
}
