//! Single-use tokens that were used, and by which key.
//!
//! The first public key that comes with such a token has it; the same key may come again (its answer may have
//! been lost), another is refused. The record is on disk before the answer leaves, so that a restart forgets
//! nothing, and is dropped once the token has expired. It is this control plane's own: where several share an
//! authority, a single-use token counts once at each.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use outrigger_certs::JoinToken;
use serde::{Deserialize, Serialize};

use crate::files;

pub struct UsedTokens {
    path: PathBuf,
    used: Mutex<BTreeMap<String, Use>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Use {
    /// SHA-256 of the public key, hexadecimal.
    key: String,
    /// Of the token. Seconds since 1970.
    expires: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum UseError {
    #[error("the join token is for a single use and was used by another key already")]
    AnotherKey,
    #[error("the use of a single-use token cannot be recorded: {0}")]
    Record(#[from] io::Error),
}

impl UsedTokens {
    pub fn load(path: PathBuf) -> io::Result<Self> {
        let used = files::read_json(&path)?.unwrap_or_default();
        Ok(Self { path, used: Mutex::new(used) })
    }

    /// Takes a token for a key, given by its hash. Blocking: it may write to the disk.
    pub fn take(&self, token: &JoinToken, key: &str, now: SystemTime) -> Result<(), UseError> {
        if !token.single_use {
            return Ok(());
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        match used.get(&token.id) {
            Some(first) if first.key == key => return Ok(()),
            Some(_) => return Err(UseError::AnotherKey),
            None => {}
        }
        let mut next = used.clone();
        next.retain(|_, used| used.expires > seconds(now));
        next.insert(token.id.clone(), Use { key: key.to_owned(), expires: seconds(token.expires) });
        files::write_json(&self.path, &next)?;
        *used = next;
        Ok(())
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use outrigger_certs::SpiffeId;

    use super::*;

    fn token(id: &str, single_use: bool) -> JoinToken {
        JoinToken {
            identity: SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap(),
            labels: BTreeMap::new(),
            expires: UNIX_EPOCH + Duration::from_secs(1000),
            id: id.to_owned(),
            single_use,
            root_sha256: [0; 32],
        }
    }

    #[test]
    fn the_first_key_has_it_even_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("used-tokens.json");
        let now = UNIX_EPOCH + Duration::from_secs(1);
        let tokens = UsedTokens::load(path.clone()).unwrap();
        tokens.take(&token("a", true), "first", now).unwrap();
        tokens.take(&token("a", true), "first", now).unwrap();
        assert!(matches!(tokens.take(&token("a", true), "second", now), Err(UseError::AnotherKey)));
        tokens.take(&token("b", true), "second", now).unwrap();

        let tokens = UsedTokens::load(path.clone()).unwrap();
        assert!(matches!(tokens.take(&token("a", true), "second", now), Err(UseError::AnotherKey)));

        // Past its expiry no token gets this far, so its record may go.
        tokens.take(&token("c", true), "third", UNIX_EPOCH + Duration::from_secs(1001)).unwrap();
        let left: BTreeMap<String, Use> = files::read_json(&path).unwrap().unwrap();
        assert_eq!(left.into_keys().collect::<Vec<_>>(), ["c"]);
    }

    #[test]
    fn others_are_not_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("used-tokens.json");
        let tokens = UsedTokens::load(path.clone()).unwrap();
        for key in ["first", "second"] {
            tokens.take(&token("a", false), key, UNIX_EPOCH).unwrap();
        }
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_recorded_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = UsedTokens::load(dir.path().join("gone").join("used-tokens.json")).unwrap();
        assert!(matches!(tokens.take(&token("a", true), "first", UNIX_EPOCH), Err(UseError::Record(_))));
    }
}
