//! The man page of a tool, subcommands included.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use wb_cli::common::Example;

/// What a page says beside the command line.
pub struct About<'a> {
    /// Name of the tool.
    pub program: &'a str,
    /// Section of the manual.
    pub section: &'a str,
    /// EXAMPLES.
    pub examples: &'a [Example],
    /// EXIT STATUS.
    pub exit_meanings: &'a [(u8, &'a str)],
    /// What follows the list of codes.
    pub exit_note: &'a str,
}

/// The page as roff.
pub fn render(command: Command, about: &About<'_>) -> anyhow::Result<String> {
    let mut command = command.after_long_help(None::<&str>).disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone())
        .title(about.program.to_uppercase())
        .section(about.section)
        .source(format!("Writeboost {}", env!("CARGO_PKG_VERSION")))
        .manual("Writeboost manual");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut page = String::from_utf8(page)?;
    page.push_str(&subcommands(&command)?);
    let mut tail = Roff::new();
    sizes(&mut tail);
    environment(&mut tail);
    files(&mut tail, about.program);
    examples(&mut tail, about.examples);
    exit_status(&mut tail, about);
    see_also(&mut tail, about.program);
    page.push_str(&tail.to_roff());
    Ok(page)
}

/// One subsection per subcommand, with its own options; the common ones are above.
fn subcommands(command: &Command) -> anyhow::Result<String> {
    let mut text = String::new();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        if text.is_empty() {
            text.push_str(".SH SUBCOMMANDS\n");
        }
        let mut sub = sub.clone();
        let common: Vec<_> = sub
            .get_arguments()
            .filter(|arg| arg.is_global_set() || matches!(arg.get_id().as_str(), "help" | "version"))
            .map(|arg| arg.get_id().clone())
            .collect();
        for id in common {
            sub = sub.mut_arg(id, |arg| arg.hide(true));
        }
        let man = Man::new(sub.clone());
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part)?;
        man.render_description_section(&mut part)?;
        if sub.get_arguments().any(|arg| !arg.is_hide_set()) {
            man.render_options_section(&mut part)?;
        }
        text.push_str(&format!(".SS \"{} {}\"\n", command.get_name(), sub.get_name()));
        for line in String::from_utf8(part)?.lines() {
            match line.strip_prefix(".SH ") {
                Some("SYNOPSIS") => {}
                // The parts follow each other as paragraphs of the subsection.
                Some(_) => text.push_str(".PP\n"),
                // Every part sets up its own quotes; once per page is enough.
                None if line.starts_with(".ie ") || line.starts_with(".el ") => {}
                None => {
                    text.push_str(line);
                    text.push('\n');
                }
            }
        }
    }
    Ok(text)
}

fn sizes(roff: &mut Roff) {
    roff.control("SH", ["SIZES AND DURATIONS"]);
    roff.text([roman(
        "Sizes are bytes, or a number with a unit: K, M, G, T and KiB, MiB, GiB, TiB are powers of 1024, \
         kB, MB, GB, TB powers of 1000. Durations carry their unit: us, ms, s, min, h, d.",
    )]);
}

fn environment(roff: &mut Roff) {
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, text) in [
        ("WB_CONFIG", "The config file, if --config names none."),
        ("WB_LOG", "What to log on stderr: error, warn, info, debug, trace, or a filter like wb_core=debug,info."),
        ("NO_COLOR", "If set, nothing is coloured."),
    ] {
        entry(roff, bold(name), text);
    }
}

fn files(roff: &mut Roff, program: &str) {
    roff.control("SH", ["FILES"]);
    entry(roff, italic("/etc/writeboost.toml"), "The config file, if nothing names another; see writeboost.toml(5).");
    if program == "wb-daemon" {
        let run_dir = wb_cli::paths::RUN_DIR;
        entry(roff, italic(format!("{run_dir}/NAME.sock")), "Control socket of the daemon that serves the cache NAME.");
        entry(roff, italic(format!("{run_dir}/NAME.nbd")), "Its NBD socket, if nothing names another address.");
        let text = "A daemon that does not run as root has its sockets in $XDG_RUNTIME_DIR/writeboost, if that is set.";
        roff.control("PP", []);
        roff.text([roman(text)]);
    }
}

fn examples(roff: &mut Roff, examples: &[Example]) {
    roff.control("SH", ["EXAMPLES"]);
    for example in examples {
        entry(roff, bold(example.command), example.does);
    }
}

fn exit_status(roff: &mut Roff, about: &About<'_>) {
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in about.exit_meanings {
        entry(roff, bold(code.to_string()), meaning);
    }
    if !about.exit_note.is_empty() {
        roff.control("PP", []);
        roff.text([roman(about.exit_note)]);
    }
}

fn see_also(roff: &mut Roff, program: &str) {
    roff.control("SH", ["SEE ALSO"]);
    let pages = ["wb-format(8)", "wb-daemon(8)", "wb-check(8)", "wb-dump(8)", "wb-bench(1)", "writeboost.toml(5)"];
    let others: Vec<&str> = pages.into_iter().filter(|page| !page.starts_with(&format!("{program}("))).collect();
    roff.text([roman(others.join(", "))]);
}

/// A term and its explanation.
pub fn entry(roff: &mut Roff, term: Inline, text: &str) {
    roff.control("TP", []);
    roff.text([term]);
    roff.text([roman(text)]);
}
