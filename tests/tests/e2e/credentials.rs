//! Callers whose certificate is wrong get nothing through.

use crate::support::Test;

pub(crate) fn tests() -> Vec<Test> {
    Vec::new()
}
