//! API keys: who may ask, and under which name.

use std::{fmt, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{ApiError, AppState, Result};

/// Paths that need no key: what probes call, and the documentation.
const PUBLIC: [&str; 4] = ["/health", "/ready", "/docs", "/openapi.json"];

/// Whose request it is: the name of the API key. Jobs of different clients get equal shares of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client(pub Arc<str>);

impl Client {
    /// Whoever asks a worker that has no keys.
    pub fn anonymous() -> Self {
        Self("anonymous".into())
    }
}

/// The API keys, as digests. None: everybody may ask.
#[derive(Clone, Default)]
pub struct Keys(Vec<Key>);

#[derive(Clone)]
struct Key {
    client: Arc<str>,
    sha256: [u8; 32],
}

impl Keys {
    /// Reads keys, one a line: `NAME:KEY`, or `KEY` alone, whose name is `default`. Empty lines and those that start with
    /// `#` are skipped.
    ///
    /// # Errors
    /// A key is shorter than 8 characters or a name is used twice; the error gives the line's number, not its text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (client, secret) = line.split_once(':').unwrap_or(("default", line));
            if client.is_empty() || secret.len() < 8 {
                return Err(format!(
                    "line {number}: expected NAME:KEY with a key of at least 8 characters"
                ));
            }
            if keys.iter().any(|key| &*key.client == client) {
                return Err(format!("line {number}: the name `{client}` is taken"));
            }
            keys.push(Key {
                client: client.into(),
                sha256: Sha256::digest(secret).into(),
            });
        }
        Ok(Self(keys))
    }

    /// Whether everybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose key `secret` is. Takes the same time for every secret of one length, right or wrong: digests are compared
    /// whole, with all keys.
    fn client(&self, secret: &[u8]) -> Option<Client> {
        let sha256: [u8; 32] = Sha256::digest(secret).into();
        let mut found = 0;
        for (number, key) in (1_u32..).zip(&self.0) {
            let equal: Choice = sha256.ct_eq(&key.sha256);
            found.conditional_assign(&number, equal);
        }
        let key = self.0.get(usize::try_from(found).ok()?.checked_sub(1)?)?;
        Some(Client(Arc::clone(&key.client)))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|key| &key.client))
            .finish()
    }
}

/// Layer: refuses requests without a known key, and leaves the [`Client`] in the request's extensions.
pub(super) async fn authenticate(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response> {
    let client = if state.keys.is_empty() {
        Client::anonymous()
    } else {
        match presented(request.headers()).and_then(|secret| state.keys.client(&secret)) {
            Some(client) => client,
            None if PUBLIC.contains(&request.uri().path()) => Client::anonymous(),
            None => {
                return Err(ApiError::new(
                    StatusCode::UNAUTHORIZED,
                    "invalid_api_key",
                    "expected an API key: `Authorization: Bearer KEY`, `X-Api-Key: KEY`, or Basic with the key as password",
                ));
            }
        }
    };
    request.extensions_mut().insert(client);
    Ok(next.run(request).await)
}

/// The key of a request: `Authorization: Bearer KEY`, `X-Api-Key: KEY`, or the password of Basic, whose user name is
/// free, as the clients of A1111 send it.
fn presented(headers: &HeaderMap) -> Option<Vec<u8>> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes().to_vec());
    }
    let (scheme, value) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.as_bytes().to_vec());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = BASE64_STANDARD.decode(value).ok()?;
        let colon = pair.iter().position(|&byte| byte == b':')?;
        return Some(pair[colon + 1..].to_vec());
    }
    None
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn keys() -> Keys {
        Keys::parse("# comment\n\nalice:secret-of-alice\nbob:secret:with:colons\n").unwrap()
    }

    #[test]
    fn a_key_is_known_by_its_name() {
        let name = |secret: &str| keys().client(secret.as_bytes()).map(|client| client.0);
        assert_eq!(name("secret-of-alice").as_deref(), Some("alice"));
        assert_eq!(name("secret:with:colons").as_deref(), Some("bob"));
        for wrong in [
            "",
            "secret-of-alicE",
            "secret-of-alice ",
            "alice",
            "alice:secret-of-alice",
        ] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_short_key_and_a_taken_name_are_refused_without_showing_the_key() {
        for (text, line) in [
            ("a:1234567", 1),
            ("x:long-enough\n:long-enough", 2),
            ("a:12345678\na:87654321", 2),
        ] {
            let error = Keys::parse(text).unwrap_err();
            assert!(error.starts_with(&format!("line {line}:")), "{error}");
            assert!(
                !error.contains("1234567") && !error.contains("8765"),
                "{error}"
            );
        }
        assert_eq!(format!("{:?}", keys()), r#"["alice", "bob"]"#);
    }

    #[test]
    fn every_form_of_a_header_carries_the_key() {
        let with = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
            presented(&headers)
        };
        let basic = format!("Basic {}", BASE64_STANDARD.encode("anyone:k:1"));
        for (name, value, key) in [
            ("authorization", "Bearer k1", "k1"),
            ("authorization", "bearer  k1", "k1"),
            ("x-api-key", "k1", "k1"),
            ("authorization", &basic, "k:1"),
        ] {
            assert_eq!(
                with(name, value).as_deref(),
                Some(key.as_bytes()),
                "{value}"
            );
        }
        for value in ["Bearer", "Digest k1", "Basic !!", "Basic YQ=="] {
            assert_eq!(with("authorization", value), None, "{value}");
        }
    }
}
