//! Distribution servers as targets.

pub mod memcached;
pub mod nginx;
pub mod redis;

use std::net::{Ipv4Addr, TcpListener};

/// A loopback port that nobody listens on. Somebody may take it before the server does; the server
/// then fails to start, which its test says.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free loopback port");
    listener.local_addr().expect("a bound socket").port()
}
