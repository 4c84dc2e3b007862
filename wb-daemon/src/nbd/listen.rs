//! Where a server listens, as users write it.

use std::fmt;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::str::FromStr;
use wb_core::rt::{Listener, NetError};

/// Where a server listens: `unix:PATH` or `HOST:PORT`. There is no default, so nothing listens that nobody asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A Unix socket, for its owner only.
    Unix(PathBuf),
    /// Host name or address, and port.
    Tcp {
        /// As written; an IPv6 address without its brackets.
        host: String,
        /// Port; 0 lets the kernel choose one.
        port: u16,
    },
}

/// Text that is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no address to listen on; write unix:PATH, HOST:PORT or [IPV6]:PORT")]
pub struct BadListenAddress(String);

impl FromStr for ListenAddress {
    type Err = BadListenAddress;
    fn from_str(text: &str) -> Result<ListenAddress, BadListenAddress> {
        let bad = || BadListenAddress(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(bad()) } else { Ok(ListenAddress::Unix(path.into())) };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        match bare.unwrap_or(host) {
            host if host.is_empty() || host.contains(['[', ']', '/']) => Err(bad()),
            host if bare.is_none() && host.contains(':') => Err(bad()),
            host => Ok(ListenAddress::Tcp { host: host.to_owned(), port }),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAddress::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            ListenAddress::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl ListenAddress {
    /// Listens: on the socket's file with mode 0600, or on every address that the host name stands for.
    pub fn open(&self) -> Result<Vec<Listener>, NetError> {
        match self {
            ListenAddress::Unix(path) => Ok(vec![Listener::unix(path, 0o600)?]),
            ListenAddress::Tcp { host, port } => {
                let unknown = |error| NetError::Os { what: format!("find the address of host '{host}'"), error };
                let addresses = (host.as_str(), *port).to_socket_addrs().map_err(unknown)?;
                addresses.map(Listener::tcp).collect()
            }
        }
    }

    /// How clients name the export `name` here (NBD URI).
    pub fn uri(&self, name: &str) -> String {
        let name = percent_encode(name);
        match self {
            ListenAddress::Unix(path) => {
                format!("nbd+unix:///{name}?socket={}", percent_encode(&path.to_string_lossy()))
            }
            ListenAddress::Tcp { .. } => format!("nbd://{self}/{name}"),
        }
    }
}

/// Encodes what has a meaning of its own in a URI (RFC 3986); slashes are kept.
fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let encode = |byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_users_write_them() {
        for text in ["unix:/run/wb.sock", "localhost:10809", "[::1]:0", "192.0.2.1:1"] {
            let address: ListenAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        for text in ["", "unix:", "10809", ":10809", "::1:10809", "host:", "host:99999", "[::1]", "/run/x:1", "[]:1"] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn uris_quote_what_would_be_misread() {
        let unix = ListenAddress::Unix("/run/a b?&#%".into());
        assert_eq!(unix.uri("v 1"), "nbd+unix:///v%201?socket=/run/a%20b%3F%26%23%25");
        let tcp: ListenAddress = "[::1]:10809".parse().expect("valid");
        assert_eq!(tcp.uri(""), "nbd://[::1]:10809/");
    }
}
