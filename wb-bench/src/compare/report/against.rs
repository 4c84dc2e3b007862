//! Two runs of the same comparison beside each other, say with the order of the systems reversed: do they agree?

use super::figures;
use super::table::{new, right};
use crate::compare::result::{Comparison, Spread};
use comfy_table::Cell;
use std::io::Write;
use wb_cli::Out;

/// Medians of two runs this close agree, whatever their spreads are: one measurement alone has none.
const CLOSE: f64 = 0.15;

/// What two runs say of one figure.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pair {
    first: Spread,
    second: Spread,
}

impl Pair {
    /// How much larger the second median is, as a share of the first.
    fn difference(&self) -> f64 {
        self.second.median / self.first.median - 1.0
    }

    /// The ranges overlap, or the medians are close.
    fn agrees(&self) -> bool {
        let overlap = self.first.min <= self.second.max && self.second.min <= self.first.max;
        overlap || self.difference().abs() <= CLOSE
    }
}

/// Prints the figures of both that both have.
pub fn print(first: &Comparison, second: &Comparison, markdown: bool, out: &mut Out) -> anyhow::Result<()> {
    let heads = ["workload", "system", "first run", "second run", "difference", "agree"];
    let mut table = new(heads.map(String::from).to_vec(), markdown);
    let (mut all, mut agreeing) = (0, 0);
    for workload in &first.workloads {
        let Some(again) = second.workloads.iter().find(|w| w.name == workload.name) else { continue };
        for system in figures::systems(first) {
            let pair = figures::shown(first, system, workload).zip(figures::shown(second, system, again));
            let Some((first, second)) = pair else { continue };
            let pair = Pair { first, second };
            (all, agreeing) = (all + 1, agreeing + usize::from(pair.agrees()));
            let mut row = vec![Cell::new(&workload.name), Cell::new(system)];
            row.extend([&pair.first, &pair.second].map(|spread| right(figures::with_spread(spread))));
            row.push(right(format!("{:+.0}%", pair.difference() * 100.0)));
            row.push(Cell::new(if pair.agrees() { "yes" } else { "no" }));
            table.add_row(row);
        }
    }
    writeln!(out, "{table}")?;
    writeln!(
        out,
        "{}{agreeing} of {all} figures agree: their ranges overlap, or their medians differ by no more than {:.0} %.",
        if markdown { "\n" } else { "" },
        CLOSE * 100.0
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_agree_within_their_spread_or_when_they_are_close() {
        let spread = |min: f64, max: f64| Spread { median: (min + max) / 2.0, min, max, count: 2 };
        let pair = |first, second| Pair { first, second };
        assert!(pair(spread(90.0, 110.0), spread(109.0, 300.0)).agrees(), "they overlap");
        assert!(pair(spread(100.0, 100.0), spread(114.0, 114.0)).agrees(), "they are close");
        assert!(!pair(spread(100.0, 100.0), spread(130.0, 131.0)).agrees());
        assert!(!pair(spread(100.0, 100.0), spread(80.0, 80.0)).agrees());
    }
}
