//! wb-man: writes the man pages and shell completions, or checks that the checked-in ones are up to date.
//!
//! Everything comes from the tools' own command line definitions and from `docs/writeboost.toml.example`, and nothing
//! from clock or machine, so that the same source gives the same bytes.

mod completions;
mod config_page;
mod page;

use anyhow::{Context as _, bail};
use clap::{CommandFactory, Parser};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use wb_cli::bench_args::BenchArgs;
use wb_cli::check_args::CheckArgs;
use wb_cli::daemon_args::DaemonArgs;
use wb_cli::dump_args::DumpArgs;
use wb_cli::format_args::FormatArgs;
use wb_cli::{Tool, exit::ExitStatus};

/// Write man pages and shell completions
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Compare what is there with what would be written; write nothing
    #[arg(long)]
    check: bool,
    /// Folder that holds pages/ and completions/
    #[arg(long, value_name = "DIR", default_value = "man")]
    dir: PathBuf,
}

/// Files to write: path below the folder -> content.
type Files = BTreeMap<String, String>;

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome =
        files().and_then(|files| if args.check { check(&args.dir, &files) } else { write(&args.dir, &files) });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("wb-man: error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn files() -> anyhow::Result<Files> {
    let mut files = Files::new();
    add_tool::<FormatArgs>(&mut files)?;
    add_tool::<DaemonArgs>(&mut files)?;
    add_tool::<CheckArgs>(&mut files)?;
    add_tool::<DumpArgs>(&mut files)?;
    add_tool::<BenchArgs>(&mut files)?;
    files.insert("pages/writeboost.toml.5".into(), config_page::render()?);
    Ok(files)
}

fn add_tool<T: Tool + CommandFactory>(files: &mut Files) -> anyhow::Result<()> {
    let about = page::About {
        program: T::PROGRAM,
        section: T::MAN_SECTION,
        examples: T::EXAMPLES,
        exit_meanings: T::Exit::MEANINGS,
        exit_note: T::Exit::NOTE,
    };
    files.insert(format!("pages/{}.{}", T::PROGRAM, T::MAN_SECTION), page::render(T::command(), &about)?);
    completions::add(T::command(), T::PROGRAM, files)
}

fn write(dir: &Path, files: &Files) -> anyhow::Result<()> {
    for (name, content) in files {
        let path = dir.join(name);
        let parent = path.parent().expect("every file is in a folder below");
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Every file is there with the right content, and no other file is beside them.
fn check(dir: &Path, files: &Files) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for (name, content) in files {
        match std::fs::read_to_string(dir.join(name)) {
            Ok(found) if found == *content => {}
            Ok(_) => wrong.push(format!("{name} is out of date")),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    for name in present(dir)? {
        if !files.contains_key(&name) {
            wrong.push(format!("{name} belongs to nothing"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{} in {}: run `make man`, and remove what belongs to nothing", wrong.join(", "), dir.display())
}

/// Files below pages/ and completions/.
fn present(dir: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec!["pages".to_string(), "completions".to_string()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        if !path.exists() {
            continue;
        }
        for entry in std::fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))? {
            let entry = entry?;
            let name = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() { folders.push(name) } else { found.push(name) }
        }
    }
    Ok(found)
}
