//! Purpose: a patch in Rust without the standard library. Repairs the price of the demo service,
//!          using the old function for what was right about it.
//! Usage:   cd samples/rust && cargo build --release
//!          suture apply target/release/libsuture_sample_rust.so --name suture-demo-ser
#![no_std]

use suture_abi::author::Old;

static OLD_PRICE: Old<extern "C" fn(u64) -> u64> = Old::new();

extern "C" fn price_with_tax(item: u64) -> u64 {
    OLD_PRICE.get()(item).saturating_mul(119) / 100
}

suture_abi::patch! {
    name: "rust-fix",
    objects: [
        main: ["price" => price_with_tax, old OLD_PRICE],
    ]
}

suture_abi::panic_aborts!();
