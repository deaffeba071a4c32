//! Which hub, and which cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// A hub and the local cache of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--org--name`.
    pub cache_dir: PathBuf,
    /// For private and gated repositories.
    pub token: Option<Token>,
    /// Use the cache alone.
    pub offline: bool,
    /// How often a request, or a download that does not come on, is tried again.
    pub retries: u32,
    /// The pause before the first repetition; each further one is twice as long.
    pub backoff: Duration,
    /// How long the hub may be silent.
    pub timeout: Duration,
}

/// An access token. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl HubOptions {
    /// The public hub, cached in `cache_dir`.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            retries: 4,
            backoff: Duration::from_millis(500),
            timeout: Duration::from_secs(30),
        }
    }

    /// The hub that the environment describes, by the rules of the Python library
    /// `huggingface_hub`. This is the one place in the libraries that reads the environment.
    ///
    /// - `HF_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else
    ///   `~/.cache/huggingface/hub`: the cache
    /// - `HF_TOKEN`, else the file `HF_TOKEN_PATH`, else `$HF_HOME/token`: the access token
    /// - `HF_ENDPOINT`: the hub's address
    /// - `HF_HUB_OFFLINE`: `1`, `on`, `yes` or `true` forbids any connection
    ///
    /// Requests also go through the proxy that `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` name.
    ///
    /// # Errors
    /// [`HubError::NoCache`] when there is neither one of the variables nor a home folder.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_vars(
            |name| std::env::var(name).ok(),
            std::env::home_dir().as_deref(),
        )
    }

    fn from_vars(
        var: impl Fn(&str) -> Option<String>,
        home: Option<&Path>,
    ) -> Result<Self, HubError> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let hf_home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(home?.join(".cache/huggingface")));
        let cache_dir = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache_dir = cache_dir
            .or_else(|| Some(hf_home.as_ref()?.join("hub")))
            .ok_or(HubError::NoCache)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home.as_ref()?.join("token")));
        let token = var("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file?).ok());
        let mut options = Self::new(cache_dir);
        if let Some(endpoint) = var("HF_ENDPOINT") {
            options.endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        options.token = token.and_then(|token| Token::new(&token));
        options.offline = var("HF_HUB_OFFLINE").is_some_and(|value| {
            matches!(
                value.to_ascii_lowercase().as_str(),
                "1" | "on" | "yes" | "true"
            )
        });
        Ok(options)
    }
}

impl Token {
    /// The token without surrounding blanks; None if nothing is left, or something that no header
    /// can carry.
    pub fn new(token: &str) -> Option<Self> {
        let token = token.trim();
        let valid = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        valid.then(|| Self(token.to_owned()))
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(vars: &[(&str, &str)], home: Option<&Path>) -> Result<HubOptions, HubError> {
        let var = |name: &str| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        HubOptions::from_vars(var, home)
    }

    #[test]
    fn the_cache_is_found_by_the_rules_of_huggingface_hub() {
        let home = Some(Path::new("/home/me"));
        let cache = |vars: &[(&str, &str)]| options(vars, home).unwrap().cache_dir;
        assert_eq!(cache(&[]), Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "/x")]),
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")]),
            Path::new("/h/hub")
        );
        assert_eq!(
            cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]),
            Path::new("/c")
        );
        assert!(matches!(options(&[], None), Err(HubError::NoCache)));
    }

    #[test]
    fn token_endpoint_and_offline_mode_are_read() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".cache/huggingface");
        std::fs::create_dir_all(&folder).unwrap();
        assert!(options(&[], Some(home.path())).unwrap().token.is_none());
        std::fs::write(folder.join("token"), "hf_file\n").unwrap();
        let token = |vars: &[(&str, &str)]| {
            options(vars, Some(home.path()))
                .unwrap()
                .token
                .unwrap()
                .secret()
                .to_owned()
        };
        assert_eq!(token(&[]), "hf_file");
        assert_eq!(token(&[("HF_TOKEN", "hf_var")]), "hf_var");

        let set = options(
            &[
                ("HF_ENDPOINT", "http://mirror/"),
                ("HF_HUB_OFFLINE", "True"),
            ],
            Some(home.path()),
        )
        .unwrap();
        assert_eq!(
            (set.endpoint.as_str(), set.offline),
            ("http://mirror", true)
        );
        assert!(
            !options(&[("HF_HUB_OFFLINE", "0")], Some(home.path()))
                .unwrap()
                .offline
        );
    }

    #[test]
    fn a_token_is_never_shown_and_always_fits_a_header() {
        let token = Token::new(" hf_secret\n").unwrap();
        assert_eq!(token.secret(), "hf_secret");
        let options = HubOptions {
            token: Some(token),
            ..HubOptions::new("/c")
        };
        assert!(!format!("{options:?}").contains("secret"));
        for bad in ["", "  ", "a\nb", "a b", "\u{e9}"] {
            assert_eq!(Token::new(bad), None, "{bad:?}");
        }
    }
}
