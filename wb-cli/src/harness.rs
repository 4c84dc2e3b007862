//! From `main` to the tool's own work and back to an exit code.

use crate::common::{CommonArgs, Example};
use crate::error::{describe, is_usage};
use crate::exit::ExitStatus;
use crate::output::Out;
use clap::error::ErrorKind;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A command line: what was typed, and how to find out what it means.
pub trait Tool: clap::Parser {
    /// What the command line and the config file together mean.
    type Plan;
    /// The tool's exit codes.
    type Exit: ExitStatus;
    /// The binary's name.
    const PROGRAM: &'static str;
    /// Section of its man page.
    const MAN_SECTION: &'static str;
    /// How many `-v` the tool behaves as if it had been given: a service tells when it is ready.
    const VERBOSE: u8 = 0;
    /// Examples of its help and man page.
    const EXAMPLES: &'static [Example];

    /// The options common to all tools.
    fn common(&self) -> &CommonArgs;
    /// What was typed -> what it means. Reads the config file where needed, touches no device.
    fn resolve(self) -> anyhow::Result<Self::Plan>;
}

/// What a tool's `run` gets beside its plan.
pub struct Context {
    /// Results go here.
    pub out: Out,
    /// Print one JSON document ([`Out::json`]) and no text for people.
    pub json: bool,
    /// How often `-v` was given.
    pub verbose: u8,
}

/// Parses the command line, runs the tool, prints its error as `PROGRAM: error: ...`, and gives its exit code.
///
/// A wrong command line or config file ends with the tool's usage code, every other error (a panic too) with its
/// failure code; nothing is on stdout then but what `run` had already written.
pub fn main_with<T, F>(run: F) -> ExitCode
where
    T: Tool,
    F: FnOnce(T::Plan, &mut Context) -> anyhow::Result<T::Exit>,
{
    let args = match T::try_parse() {
        Ok(args) => args,
        Err(err) => {
            // A closed pipe is no error, so what the writes return does not matter.
            if err.use_stderr() && err.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                let _ = write!(std::io::stderr(), "{}: ", T::PROGRAM);
            }
            let _ = err.print();
            return ExitCode::from(if err.use_stderr() { T::Exit::USAGE.code() } else { 0 });
        }
    };
    let common = args.common().clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        crate::logging::init(common.verbose.saturating_add(T::VERBOSE))?;
        let mut ctx = Context { out: Out::stdout(), json: common.json, verbose: common.verbose };
        let plan = args.resolve()?;
        let exit = run(plan, &mut ctx)?;
        ctx.out.finish()?;
        Ok(exit)
    }));
    let code = match outcome {
        Ok(Ok(exit)) => exit.code(),
        Ok(Err(err)) => {
            complain(T::PROGRAM, &describe(&err));
            if is_usage(&err) { T::Exit::USAGE.code() } else { T::Exit::FAILED.code() }
        }
        // The panic hook has printed where and why.
        Err(_) => {
            complain(T::PROGRAM, "internal error (see above): please report it with the command that led here");
            T::Exit::FAILED.code()
        }
    };
    ExitCode::from(code)
}

/// One line on stderr; a closed stderr is no error.
fn complain(program: &str, message: &str) {
    let _ = writeln!(std::io::stderr(), "{program}: error: {message}");
}
