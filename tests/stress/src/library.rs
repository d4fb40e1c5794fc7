//! Libraries that are built and loaded by the process under stress.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use tempfile::TempDir;

use crate::error::{Error, Result};

/// Name of the built file.
const FILE: &str = "victim.so";
/// How many bytes of a function are looked at.
const LOOK: usize = 64;

/// A library made from a source of this folder, loaded for good.
#[derive(Debug)]
pub struct Library {
    name: &'static str,
    handle: *mut libc::c_void,
    folder: TempDir,
}

impl Library {
    /// Compiles and loads `source`.
    pub fn build(compiler: &str, name: &'static str, source: &str, flags: &[&str]) -> Result<Self> {
        let fail = |reason: String| Error::Compiled { name, reason };
        let folder = tempfile::tempdir().map_err(|e| fail(e.to_string()))?;
        let (input, output) = (folder.path().join(name), folder.path().join(FILE));
        fs::write(&input, source).map_err(|e| fail(e.to_string()))?;
        let mut command = Command::new(compiler);
        command.args(["-O2", "-fPIC", "-shared"]).args(flags).arg("-o").arg(&output).arg(&input);
        let made = command.output().map_err(|e| fail(format!("cannot run {compiler}: {e}")))?;
        if !made.status.success() {
            return Err(fail(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        let path = CString::new(output.as_os_str().as_encoded_bytes()).map_err(|e| fail(e.to_string()))?;
        // SAFETY: the path is NUL-terminated; the library's constructors are the compiler's own.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            return Err(fail("dlopen refused it".to_owned()));
        }
        Ok(Self { name, handle, folder })
    }

    /// Address of an exported symbol.
    pub fn symbol(&self, symbol: &CStr) -> Result<u64> {
        // SAFETY: the handle is open for ever, the name is NUL-terminated.
        let at = unsafe { libc::dlsym(self.handle, symbol.as_ptr()) };
        if at.is_null() {
            return Err(self.fail(&format!("no symbol {symbol:?}")));
        }
        Ok(at.addr() as u64)
    }

    /// The file it was loaded from.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(FILE)
    }

    /// An error about this library.
    pub fn fail(&self, reason: &str) -> Error {
        Error::Compiled { name: self.name, reason: reason.to_owned() }
    }

    /// Address of the first direct call in the function at `entry`, and where it leads.
    pub fn first_call(&self, entry: u64) -> Result<(u64, u64)> {
        Decoder::with_ip(64, code_at(entry), entry, DecoderOptions::NONE)
            .iter()
            .take_while(|i| i.mnemonic() != Mnemonic::Ret)
            .find(|i| i.is_call_near())
            .map(|i| (i.ip(), i.near_branch_target()))
            .ok_or_else(|| self.fail("the compiler made no direct call"))
    }
}

/// The bytes of a function of a loaded library.
pub fn code_at(entry: u64) -> &'static [u8] {
    // SAFETY: callers pass entries in a library that stays loaded; behind its text lie its headers
    // of unwinding, so that the bytes looked at are mapped.
    unsafe { std::slice::from_raw_parts(entry as *const u8, LOOK) }
}
