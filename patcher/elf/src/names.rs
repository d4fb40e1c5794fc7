//! Names as people read them.

/// Demangles a C++ (Itanium) or Rust symbol name; any other name is returned as it is.
#[must_use]
pub fn demangle(name: &str) -> String {
    if let Ok(rust) = rustc_demangle::try_demangle(name) {
        return format!("{rust:#}");
    }
    // A plain C name can be the encoding of a C++ type: `f` is that of float.
    let mangled = name.starts_with("_Z").then(|| cpp_demangle::Symbol::new(name).ok()).flatten();
    mangled.and_then(|symbol| symbol.demangle().ok()).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::demangle;

    #[test]
    fn c_cpp_and_rust_names() {
        assert_eq!(demangle("malloc"), "malloc");
        assert_eq!(demangle("f"), "f");
        assert_eq!(
            demangle("_ZNKSt6vectorIiSaIiEE4sizeEv"),
            "std::vector<int, std::allocator<int> >::size() const"
        );
        assert_eq!(demangle("_ZN4core3fmt5write17h0123456789abcdefE"), "core::fmt::write");
        assert_eq!(demangle("_Z"), "_Z");
    }
}
