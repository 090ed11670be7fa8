//! Whether an address is this host's: of any other, this machine's meters say nothing.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

/// Whether `url` leads to a loopback address or to one of this host's own interfaces, whatever its name resolves to. What
/// cannot be resolved may be anywhere; an address of a container or of another network namespace is not this host's.
pub fn is_here(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let port_of_its_own = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let with_port = if port_of_its_own { authority.to_owned() } else { format!("{authority}:80") };
    let Ok(found) = with_port.to_socket_addrs() else { return false };
    let addresses: Vec<SocketAddr> = found.collect();
    !addresses.is_empty() && addresses.iter().all(|address| is_own(address.ip()))
}

/// The source that the kernel would send from to one of its own addresses is that address. Nothing is sent.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip().to_canonical() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_own_addresses_are_here_and_others_are_not() {
        for here in [
            "http://127.0.0.1:8000",
            "http://127.3.2.1",
            "http://localhost:1/v1",
            "http://[::1]:9",
            "http://u:p@127.0.0.1:1/",
        ] {
            assert!(is_here(here), "{here}");
        }
        // Addresses of documentation (RFC 5737, 3849), of groups, and names that nobody has (RFC 6761).
        for there in [
            "http://192.0.2.1:8000",
            "http://[2001:db8::1]:80",
            "http://224.0.0.1:1",
            "http://nowhere.invalid:8000",
            "http://",
            "http://127.0.0.1@192.0.2.1:1",
        ] {
            assert!(!is_here(there), "{there}");
        }
        // The address that this host would be reached at, if it has one.
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("192.0.2.1:9").is_ok() {
            let own = socket.local_addr().unwrap().ip();
            assert!(is_here(&format!("http://{own}:8000")), "{own}");
        }
    }
}
