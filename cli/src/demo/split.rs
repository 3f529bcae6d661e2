//! When did a new split of the traffic take hold? Found in the sequence of the answers themselves.
//!
//! Each answer came from version 1 or version 2, before the change with one share of version 2 and after it with
//! another. Every position in the sequence is a candidate for the first request that followed the new split; the most
//! likely one is taken. With 10 against 90 percent it is off by one or two requests at most.

/// One answer of the versioned service.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Shares of version 2, between 0 and 1 exclusive.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) from: f64,
    pub(crate) to: f64,
}

/// Index of the first answer that followed the change; `None` when it is more likely that none did.
pub(crate) fn first_after(answers: &[Version], change: Change) -> Option<usize> {
    let log_odds = |answer: &Version| match answer {
        Version::V2 => (change.to / change.from).ln(),
        Version::V1 => ((1.0 - change.to) / (1.0 - change.from)).ln(),
    };
    // The gain of "everything from here on followed" over "nothing followed", summed from the end.
    let mut best = (0.0, None);
    let mut gain = 0.0;
    for (index, answer) in answers.iter().enumerate().rev() {
        gain += log_odds(answer);
        if gain > best.0 {
            best = (gain, Some(index));
        }
    }
    best.1
}

/// Share of version 2.
pub(crate) fn share(answers: &[Version]) -> f64 {
    let of_v2 = answers.iter().filter(|answer| **answer == Version::V2).count();
    of_v2 as f64 / answers.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOVE: Change = Change { from: 0.1, to: 0.9 };

    /// `1` and `2` as versions.
    fn answers(text: &str) -> Vec<Version> {
        text.chars().map(|c| if c == '2' { Version::V2 } else { Version::V1 }).collect()
    }

    #[test]
    fn finds_the_change_among_strays() {
        for (text, expected) in [
            ("", None),
            ("1111111111", None),
            ("1121111112111", None),
            ("2222222222", Some(0)),
            ("1111122222", Some(5)),
            ("11211111122222122222", Some(9)),
            ("111111111111112", Some(14)),
        ] {
            assert_eq!(first_after(&answers(text), MOVE), expected, "{text}");
        }
    }

    #[test]
    fn works_in_both_directions() {
        let back = Change { from: 0.9, to: 0.1 };
        assert_eq!(first_after(&answers("2221222111112111"), back), Some(7));
    }

    #[test]
    fn shares() {
        assert!(share(&answers("1222")) > 0.74 && share(&answers("1222")) < 0.76);
        assert!(share(&[]).abs() < f64::EPSILON);
    }
}
