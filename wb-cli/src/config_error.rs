//! Errors of the config file, as people need them: line, key, the nearest valid key.

use strsim::damerau_levenshtein;

/// `LINE: what is wrong` for an error of the toml parser, in one line.
pub fn describe(text: &str, err: &toml::de::Error) -> String {
    let line = err.span().map_or(1, |span| line_at(text, span.start));
    let message = err.message().replace('\n', " ");
    match unknown_field(&message) {
        Some((key, known)) => format!("{line}: unknown key `{key}`{}", suggestion(key, &known)),
        None => format!("{line}: {}", message.trim()),
    }
}

/// Line of the `at`-th `[[cache]]`, counted from 0; 1 if it is written in another way.
pub fn line_of_section(text: &str, at: usize) -> usize {
    let mut sections = text.lines().enumerate().filter(|(_, line)| {
        let line = line.trim_start();
        line.strip_prefix("[[").is_some_and(|rest| rest.trim_start().starts_with("cache"))
    });
    sections.nth(at).map_or(1, |(line, _)| line + 1)
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

/// The key and the keys that serde expected, out of "unknown field `x`, expected one of `a`, `b`".
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut quoted = rest.split('`');
    let key = quoted.next()?;
    let known = quoted.skip(1).step_by(2).collect();
    Some((key, known))
}

fn suggestion(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(near) => format!(": did you mean `{near}`?"),
        None => format!(": the keys here are {}", known.join(", ")),
    }
}

/// The one of `known` that `typed` probably was meant to be.
pub fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let typed = typed.to_lowercase().replace('-', "_");
    let limit = (typed.len() / 3).max(1) + 1;
    known
        .iter()
        .map(|candidate| (damerau_levenshtein(&typed, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= limit || candidate.starts_with(&typed))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_messages_are_taken_apart() {
        let (key, known) = unknown_field("unknown field `x`, expected one of `a`, `b`, `c`").unwrap();
        assert_eq!((key, known), ("x", vec!["a", "b", "c"]));
        let (_, known) = unknown_field("unknown field `x`, expected `a`").unwrap();
        assert_eq!(known, ["a"]);
    }

    #[test]
    fn the_nearest_key_is_found_and_a_far_one_is_not() {
        let known = ["device", "backing", "read_only", "nbd"];
        assert_eq!(nearest("devcie", &known), Some("device"));
        assert_eq!(nearest("read-only", &known), Some("read_only"));
        assert_eq!(nearest("bac", &known), Some("backing"));
        assert_eq!(nearest("colour", &known), None);
    }
}
