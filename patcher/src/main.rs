//! `suture`: see `suture --help`.
fn main() {}
