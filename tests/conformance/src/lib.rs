//! The conformance rows: what a live-patching runtime has to do, as data.
//!
//! A scenario file (`*.scn`) holds rows; a row says which patches and threads there are, what is done, what each
//! step answers, and which events the log must show, all of them and in that order. The notation is explained in
//! `README.md` beside the files. Nothing of a row is compiled into this program: patches are written as C and
//! compiled when the row runs, the program they patch is `fixture/demo.c`.
//!
//! | module | what it is for |
//! |---|---|
//! | [`scn`] | the notation: text to rows, with the place of every mistake |
//! | [`fixture`] | rows' patches as C; compiles them and the program |
//! | [`demo`] | the running program: its threads are told what to do |
//! | [`product`] | the command under test: exit status, errno, status, events |
//! | [`compare`] | events expected and seen |
//! | [`run`] | runs a row in one mode, and many rows |
//! | [`report`] | results as text and JSON |
#![deny(unsafe_code)]

pub mod compare;
pub mod demo;
pub mod fixture;
pub mod product;
pub mod report;
pub mod run;
pub mod scn;
