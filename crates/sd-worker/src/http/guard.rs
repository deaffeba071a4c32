//! Against web pages that reach for a worker on the same machine: DNS rebinding and requests across origins.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, header, uri::Authority},
    middleware::Next,
    response::Response,
};

use super::{ApiError, AppState, Result};

/// Layer: refuses requests for a host that is not this worker's and from pages of other origins.
///
/// On loopback the host has to be `localhost` or a loopback address, otherwise whatever the configuration allows; a page
/// whose name was made to resolve to this machine shows its own name. An `Origin` has to be the host's own or one that
/// the configuration allows.
pub(super) async fn check(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response> {
    let host = host(request.headers(), request.uri()).ok_or_else(|| {
        ApiError::new(
            StatusCode::BAD_REQUEST,
            "invalid_host",
            "expected one Host header with a host name",
        )
        .param("Host")
    })?;
    let config = &state.config;
    let allowed = config
        .allowed_hosts
        .iter()
        .any(|allowed| allowed.eq_ignore_ascii_case(host.host()));
    let local = is_local(host.host());
    let open = !config.listen.ip().is_loopback() && config.allowed_hosts.is_empty();
    if !(allowed || local || open) {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "host_not_allowed",
            "this worker does not answer under that name; allow it with --allowed-host",
        )
        .param("Host"));
    }
    if let Some(origin) = request.headers().get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let own = origin
            .split_once("://")
            .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host.as_str()));
        if !own
            && !config
                .cors_origins
                .iter()
                .any(|allowed| allowed == origin || allowed == "*")
        {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "origin_not_allowed",
                "pages of that origin may not use this worker; allow it with --cors-origin",
            )
            .param("Origin"));
        }
    }
    Ok(next.run(request).await)
}

/// The host that is asked for: that of an absolute target, otherwise of the `Host` header.
fn host(headers: &HeaderMap, uri: &Uri) -> Option<Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let first = hosts.next();
    if hosts.next().is_some() {
        return None;
    }
    match uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => Authority::try_from(first?.as_bytes()).ok(),
    }
}

fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]"] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "0.0.0.0",
            "10.0.0.1",
            "",
            "[::2]",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn two_hosts_or_none_are_no_host() {
        let mut headers = HeaderMap::new();
        let uri = Uri::from_static("/health");
        assert!(host(&headers, &uri).is_none());
        headers.append(header::HOST, "localhost:7860".parse().unwrap());
        assert_eq!(host(&headers, &uri).unwrap().host(), "localhost");
        headers.append(header::HOST, "evil.example".parse().unwrap());
        assert!(host(&headers, &uri).is_none());
    }
}
