//! When to tell that a certificate is near its end: it should have been renewed at half of its life.

use std::time::{Duration, SystemTime};

use outrigger_certs::{Credentials, rotation::Validity, verify::rfc3339};

/// Parts of a life that are left: told once each.
const LEFT: [u32; 2] = [4, 10];

#[derive(Default)]
pub(super) struct NearEnd {
    /// The certificate looked at, by its end, and how many of [`LEFT`] it has passed.
    known: Option<(SystemTime, usize)>,
}

impl NearEnd {
    /// What there is to tell now.
    pub(super) fn look(&mut self, credentials: &Credentials, now: SystemTime) -> Option<String> {
        let own = credentials.current()?;
        let validity = own.validity();
        let left = self.passes(validity, now)?;
        let ends = rfc3339(validity.not_after);
        Some(match left.as_secs() {
            0 => format!("the certificate of {} has ended at {ends}", own.identity()),
            left => format!(
                "the certificate of {} ends at {ends}, in {left} s, and was not renewed yet",
                own.identity()
            ),
        })
    }

    /// What is left of its life, if that has become less than one of [`LEFT`] since the last time.
    fn passes(&mut self, validity: Validity, now: SystemTime) -> Option<Duration> {
        let Validity { not_before, not_after } = validity;
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let left = not_after.duration_since(now).unwrap_or_default();
        let passed = LEFT.iter().filter(|part| left < life / **part).count();
        let before = self.known.filter(|(end, _)| *end == not_after).map_or(0, |(_, passed)| passed);
        self.known = Some((not_after, passed.max(before)));
        (passed > before).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn each_certificate_is_told_of_twice_at_most() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let certificate = |from| Validity { not_before: at(from), not_after: at(from + 1_000) };
        let mut near_end = NearEnd::default();
        let mut told = |validity, now| near_end.passes(validity, at(now)).map(|left| left.as_secs());
        for (now, left) in [
            (0, None),
            (500, None),
            (750, None),
            (751, Some(249)),
            (752, None),
            (899, None),
            (901, Some(99)),
            (950, None),
            (2_000, None),
            // The clock was set back.
            (760, None),
        ] {
            assert_eq!(told(certificate(0), now), left, "{now}");
        }
        // Another one, which is far in its life when it is first seen.
        assert_eq!(told(certificate(3_000), 3_960), Some(40));
        assert_eq!(told(certificate(3_000), 3_970), None);
        assert_eq!(told(certificate(4_000), 4_000), None);
        assert_eq!(told(certificate(4_000), 6_000), Some(0), "it has ended before anybody looked");
    }
}
