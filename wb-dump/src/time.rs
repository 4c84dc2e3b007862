//! Times for people.

/// `2026-03-04 05:06:07.089 UTC`; `-` for 0, which is "not known".
pub fn utc(unix_ns: u64) -> String {
    if unix_ns == 0 {
        return "-".into();
    }
    let (seconds, millis) = (unix_ns / 1_000_000_000, unix_ns / 1_000_000 % 1000);
    let (year, month, day) = civil(seconds / 86400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03} UTC")
}

/// Year, month and day of a number of days since 1970, in the Gregorian calendar: years begin in March, so that the
/// leap day is the last of a year, and 400 years have 146097 days.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days since 1 March of year 0.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days() {
        assert_eq!(utc(0), "-");
        assert_eq!(utc(1_000_000), "1970-01-01 00:00:00.001 UTC");
        assert_eq!(utc(951_782_400_000_000_000), "2000-02-29 00:00:00.000 UTC");
        assert_eq!(utc(1_709_251_199_999_000_000), "2024-02-29 23:59:59.999 UTC");
        assert_eq!(utc(4_107_542_400_000_000_000), "2100-03-01 00:00:00.000 UTC");
    }
}
