//! Patching the servers of the distribution under load, many times, and keeping count of everything.
//!
//! | module | what it is for |
//! |---|---|
//! | [`servers`] | the servers: how each is started, what is patched and how a client sees it |
//! | [`client`] | small clients that know what a right answer is |
//! | `databases` | those that are databases, with clients for their protocols |
//! | [`load`] | clients at work: requests, failures, latencies |
//! | [`eintr`] | an independent count of calls that ended with EINTR |
//! | [`run`] | the rounds of one server |
//! | [`table`] | what is shown |

pub mod client;
mod databases;
pub mod eintr;
pub mod load;
pub mod run;
pub mod servers;
pub mod table;
