//! How a capacity is divided by wishes.

/// Everybody gets its wish, or where that is too much, as much as everybody else who wishes for more. What is left is
/// spread equally.
pub(super) fn fill(wanted: &[u64], capacity: u64) -> Vec<u64> {
    let mut ascending = wanted.to_vec();
    ascending.sort_unstable();
    let mut left = capacity;
    let mut open = wanted.len() as u64;
    for &want in &ascending {
        let level = left / open;
        if want > level {
            return wanted.iter().map(|&want| want.min(level)).collect();
        }
        left -= want;
        open -= 1;
    }
    spread(wanted.to_vec(), left)
}

/// Everybody gets `reserve`, and of the rest as its wish beyond it is to all such wishes; at most its wish. What is left
/// is spread equally. No wish is below the reserve, and the capacity is at least all reserves.
pub(super) fn in_proportion(wanted: &[u64], reserve: u64, capacity: u64) -> Vec<u64> {
    let beyond = |want: u64| want.saturating_sub(reserve);
    let sum: u128 = wanted.iter().map(|&want| u128::from(beyond(want))).sum();
    let rest = capacity.saturating_sub(reserve * wanted.len() as u64);
    if sum <= u128::from(rest) {
        return spread(wanted.to_vec(), rest - sum as u64);
    }
    let part = |want: u64| (u128::from(beyond(want)) * u128::from(rest) / sum) as u64;
    wanted.iter().map(|&want| reserve + part(want)).collect()
}

fn spread(mut shares: Vec<u64>, left: u64) -> Vec<u64> {
    let each = left / (shares.len() as u64).max(1);
    shares.iter_mut().for_each(|share| *share += each);
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (wanted, capacity, filled) in [
            (vec![], 100, vec![]),
            (vec![0], 100, vec![100]),
            (vec![10, 20], 100, vec![45, 55]),
            (vec![10, 200], 100, vec![10, 90]),
            (vec![200, 10, 300], 100, vec![45, 10, 45]),
            (vec![1, 1, 1, 300], 100, vec![1, 1, 1, 97]),
            (vec![75; 4], 100, vec![25; 4]),
        ] {
            assert_eq!(fill(&wanted, capacity), filled, "{wanted:?}");
        }
        assert_eq!(in_proportion(&[900, 100], 0, 100), [90, 10]);
        assert_eq!(in_proportion(&[900, 10, 100], 10, 130), [100, 10, 19]);
        assert_eq!(in_proportion(&[10, 20], 10, 100), [45, 55]);
    }
}
