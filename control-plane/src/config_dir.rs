//! The configuration directory: every `*.yaml` and `*.yml` in it, read as one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use outrigger_certs::{TrustDomain, inspect::hex, verify};

use crate::{
    config::{self, Config, ConfigError, SourceFile},
    yaml::Place,
};

/// Larger files are refused: nobody writes them by hand, and reading one would stall everything else.
const MAX_FILE_BYTES: u64 = 16 << 20;

pub struct ConfigDir {
    path: PathBuf,
    trust_domain: TrustDomain,
}

/// What was found at one time.
pub struct Reading {
    /// Names, as errors show them.
    pub files: Vec<Arc<str>>,
    /// Equal for equal contents.
    pub version: String,
    pub result: Result<Config, Vec<ConfigError>>,
}

impl ConfigDir {
    pub fn new(path: &Path, trust_domain: &TrustDomain) -> Self {
        Self { path: path.to_owned(), trust_domain: trust_domain.clone() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads and checks everything. Blocking.
    pub fn read(&self) -> Reading {
        let names = match names(&self.path) {
            Ok(names) => names,
            Err(error) => {
                let reason = format!("cannot read the configuration directory: {error}");
                let file = self.path.display().to_string().into();
                let error = ConfigError::new(&file, Place::START, "", "", reason);
                return Reading { files: Vec::new(), version: String::new(), result: Err(vec![error]) };
            }
        };
        let file = |name: Arc<str>| SourceFile { text: read_file(&self.path.join(&*name)), name };
        let files: Vec<_> = names.into_iter().map(file).collect();
        let version = version(&files);
        let result = config::read(&files, &self.trust_domain);
        Reading { files: files.into_iter().map(|file| file.name).collect(), version, result }
    }
}

fn names(dir: &Path) -> io::Result<Vec<Arc<str>>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let wanted = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        let Some(name) = path.file_name().map(|name| name.to_string_lossy()) else { continue };
        // Hidden files are what editors leave behind, and the machinery of ConfigMap volumes.
        if wanted && !name.starts_with('.') && !path.is_dir() {
            names.push(name.into());
        }
    }
    names.sort();
    Ok(names)
}

fn read_file(path: &Path) -> Result<String, String> {
    let bytes = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(format!("has {bytes} bytes; at most {MAX_FILE_BYTES} are read"));
    }
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    String::from_utf8(bytes)
        .map_err(|error| format!("is not UTF-8: byte {}", error.utf8_error().valid_up_to()))
}

fn version(files: &[SourceFile]) -> String {
    let mut all = Vec::new();
    for SourceFile { name, text } in files {
        let (Ok(text) | Err(text)) = text;
        for part in [name, text.as_str()] {
            all.extend_from_slice(&(part.len() as u64).to_le_bytes());
            all.extend_from_slice(part.as_bytes());
        }
    }
    hex(&verify::fingerprint(&all)[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path) -> Reading {
        ConfigDir::new(dir, &TrustDomain::parse("mesh.local").unwrap()).read()
    }

    const SERVICE: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: MeshService\nmetadata: {name: a}\nspec: {ports: [{port: 1}]}\n";

    #[test]
    fn yaml_files_are_read_and_others_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub.yaml")).unwrap();
        for (name, text) in [
            ("b.yml", SERVICE.replace("name: a", "name: b")),
            ("a.yaml", SERVICE.to_owned()),
            (".a.yaml.swp", "{".to_owned()),
            (".hidden.yaml", "{".to_owned()),
            ("README.md", "{".to_owned()),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let reading = read(dir.path());
        assert_eq!(reading.files, ["a.yaml".into(), "b.yml".into()] as [Arc<str>; 2]);
        assert_eq!(reading.result.unwrap().services.len(), 2);
    }

    #[test]
    fn equal_contents_have_equal_versions() {
        let dir = tempfile::tempdir().unwrap();
        let empty = read(dir.path()).version;
        fs::write(dir.path().join("a.yaml"), SERVICE).unwrap();
        let one = read(dir.path()).version;
        assert_ne!(empty, one);
        fs::write(dir.path().join("a.yaml"), SERVICE).unwrap();
        assert_eq!(read(dir.path()).version, one);
        fs::rename(dir.path().join("a.yaml"), dir.path().join("b.yaml")).unwrap();
        assert_ne!(read(dir.path()).version, one);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.yaml"), b"a: \xff\n").unwrap();
        fs::File::create(dir.path().join("b.yaml")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("c.yaml")).unwrap();
        let errors: Vec<_> = read(dir.path()).result.unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(errors[0], "a.yaml:1:1: is not UTF-8: byte 3");
        assert_eq!(errors[1], "b.yaml:1:1: has 16777217 bytes; at most 16777216 are read");
        assert!(errors[2].starts_with("c.yaml:1:1: No such file"), "{}", errors[2]);

        let missing = read(&dir.path().join("missing")).result.unwrap_err();
        assert!(missing[0].reason.starts_with("cannot read the configuration directory: No such file"));
    }

    #[test]
    fn the_example_is_a_configuration() {
        let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop");
        let config = read(&shop).result.unwrap_or_else(|errors| panic!("{errors:#?}"));
        assert_eq!(config.services.len(), 5);
        let route = &config.routes[&config::ObjectName::new("shop", "orders")];
        let split = route.rules.iter().find(|rule| &*rule.name == "shop/orders/split").unwrap();
        assert_eq!(split.backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [90, 10]);
    }
}
