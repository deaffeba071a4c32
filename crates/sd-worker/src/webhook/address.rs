//! Where callbacks may go: a client's URL must not reach what only this machine can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ureq::{
    Error,
    config::Config,
    http::{Uri, uri::Scheme},
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver},
        transport::NextTimeout,
    },
};

use super::WebhookConfig;

/// Longest URL.
const MAX_URL: usize = 2048;

/// Checks what can be said of a callback's URL before its host is looked up. An error says what is expected.
pub fn check_url(url: &str, config: &WebhookConfig) -> Result<(), String> {
    let expected = match config.allow_http {
        true => "expected an http or https URL without credentials",
        false => "expected an https URL without credentials",
    };
    let uri: Uri = match url.parse() {
        Ok(uri) if url.len() <= MAX_URL => uri,
        _ => return Err(expected.into()),
    };
    let scheme = uri.scheme();
    let allowed =
        scheme == Some(&Scheme::HTTPS) || config.allow_http && scheme == Some(&Scheme::HTTP);
    let authority = uri
        .authority()
        .filter(|authority| !authority.as_str().contains('@') && !authority.host().is_empty());
    let Some(authority) = authority.filter(|_| allowed) else {
        return Err(expected.into());
    };
    let host = authority.host().trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(address) if !config.allow_private && !is_public(address) => {
            Err("expected a host with a public address".into())
        }
        _ => Ok(()),
    }
}

/// Looks hosts up, and returns no address that callbacks must not go to. The connection is made to what this returns,
/// so there is no second look-up that could give another answer.
#[derive(Debug)]
pub(super) struct PublicResolver {
    pub(super) allow_private: bool,
}

impl Resolver for PublicResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let found = DefaultResolver::default().resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        let public = |address: &&SocketAddr| self.allow_private || is_public(address.ip());
        for address in found.iter().filter(public) {
            allowed.push(*address);
        }
        if allowed.is_empty() {
            return Err(Error::HostNotFound);
        }
        Ok(allowed)
    }
}

/// Whether an address is one of the public internet (IANA's special-purpose registries name those that are not).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || a == 0
        || a >= 224 // multicast, reserved, broadcast
        || (a == 100 && (64..128).contains(&b)) // carrier-grade NAT
        || (a == 192 && b == 0 && c == 0) // protocol assignments
        || (a == 192 && b == 88 && c == 99) // 6to4 relays
        || (a == 198 && (18..20).contains(&b)); // benchmarks
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let [.., high, low] = segments;
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    let embedded = Ipv4Addr::new(a, b, c, d);
    match segments {
        // IPv4 in other clothes: mapped, and translated by NAT64.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(embedded),
        // Teredo and 6to4 lead to IPv4 addresses, too; documentation leads nowhere.
        [0x2001, 0 | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0x0fff, ..] => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_known_in_all_spellings() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn urls_are_checked_before_anything_is_looked_up() {
        let mut config = WebhookConfig::new(vec![1], Arc::new(|_| vec![]));
        for url in [
            "",
            "example.com",
            "/done",
            "ftp://example.com",
            "http://example.com",
            "https://user:secret@example.com",
            "https://127.0.0.1/",
            "https://[::1]:8443/",
            "https://[::ffff:10.0.0.1]/",
            "https://10.1.2.3",
            "file:///etc/passwd",
        ] {
            assert!(check_url(url, &config).is_err(), "{url}");
        }
        assert!(check_url(&format!("https://a.com/{}", "x".repeat(MAX_URL)), &config).is_err());
        for url in [
            "https://example.com",
            "https://example.com:8443/a?b=c",
            "https://8.8.8.8/",
        ] {
            assert_eq!(check_url(url, &config), Ok(()), "{url}");
        }
        config.allow_http = true;
        assert_eq!(check_url("http://example.com", &config), Ok(()));
        assert!(check_url("http://127.0.0.1", &config).is_err());
        config.allow_private = true;
        assert_eq!(check_url("http://127.0.0.1", &config), Ok(()));
    }
}
