//! Shares of redirectable functions in the libraries and servers of Debian 12.
//!
//! The counts are golden for the build-ids below; with another build of a package, or without it, the
//! test says so and checks only the share.

use std::path::Path;
use std::time::Instant;
use suture_elf::ObjectFile;
use suture_redirect::{Census, Class, Classes, ObjectAnalysis, Options, census};

/// Path, build-id the golden counts belong to, and the share in per cent that was counted on live
/// processes before rule 4 was checked.
const FILES: &[(&str, &str, f64)] = &[
    ("/lib/x86_64-linux-gnu/libc.so.6", "93ac61ec5a8eb1396f9fbd350e3169a558528a40", 98.4),
    ("/usr/lib/x86_64-linux-gnu/libcrypto.so.3", "30563306a0d30a4acfe7ce1e066c8696b5e7856f", 99.7),
    ("/usr/lib/x86_64-linux-gnu/libstdc++.so.6", "289ee39f8c07bd4fa48102dfeeb7e6f9c76158b4", 99.0),
    ("/usr/bin/redis-server", "a50d6825e71f1473372299161f75fe50e80452de", 99.6),
    ("/usr/sbin/nginx", "74429228deec622306ed48e0188056aed01ba01f", 99.5),
];

/// Large programs: minutes of census in an unoptimised build, so only on request
/// (`SUTURE_LONG=1`).
const LARGE: &[(&str, f64)] = &[("/usr/sbin/mariadbd", 93.5), ("/usr/bin/node", 94.7)];

fn count(path: &str) -> Option<(String, Census)> {
    let file = match ObjectFile::open(Path::new(path)) {
        Ok(file) => file,
        Err(why) => {
            println!("not counted: {why}");
            return None;
        }
    };
    let analysis = ObjectAnalysis::new(&file);
    let start = Instant::now();
    let counted = census(&analysis, None, &Options::default());
    println!("{path}: {:.2} % of {} functions in {:?}", counted.share(), counted.functions, start.elapsed());
    Some((file.build_id().map(ToString::to_string).unwrap_or_default(), counted))
}

/// The share without the losses to registers (rule 4) and to resolvers and their like.
fn share_before_checker(census: &Census) -> f64 {
    let lost = ["registers at entry", "registers of callers", "nature"];
    let lost: usize = lost.iter().filter_map(|rule| census.refused.get(rule)).sum();
    100.0 * (census.redirectable + lost) as f64 / census.functions as f64
}

#[test]
fn shares_of_debians_libraries_and_servers() {
    for (path, build_id, share) in FILES {
        let Some((found, counted)) = count(path) else { continue };
        assert!(share_before_checker(&counted) > share - 2.0, "{path}: {counted:?}");
        assert!(counted.share() > share - 3.0, "{path}: {counted:?}");
        let refused: usize = counted.refused.values().sum();
        assert_eq!(counted.redirectable + refused, counted.functions, "{path}: every loss has its rule");
        if found == *build_id {
            let name = Path::new(path).file_name().unwrap().to_str().unwrap();
            insta::assert_json_snapshot!(name, serde_json::to_value(&counted).unwrap());
        } else {
            println!("counts not compared: {path} is build {found}, the golden ones are of {build_id}");
        }
    }
}

#[test]
fn shares_of_large_programs() {
    if std::env::var_os("SUTURE_LONG").is_none() {
        println!("not counted: set SUTURE_LONG=1 to count node and mariadbd");
        return;
    }
    for (path, share) in LARGE {
        if let Some((_, counted)) = count(path) {
            assert!(share_before_checker(&counted) > share - 2.0, "{path}: {counted:?}");
        }
    }
}

#[test]
fn each_class_alone_redirects_fewer() {
    let Ok(file) = ObjectFile::open(Path::new("/usr/sbin/nginx")) else {
        println!("not counted: nginx is not installed");
        return;
    };
    let analysis = ObjectAnalysis::new(&file);
    let all = census(&analysis, None, &Options::default());
    for class in Class::ALL {
        let classes = Classes::parse(&class.to_string()).unwrap();
        let alone = census(&analysis, None, &Options { classes, ..Options::default() });
        let letter = char::from(class.letter());
        assert!(alone.redirectable <= all.redirectable);
        assert_eq!(alone.classes.keys().filter(|c| **c != letter).count(), 0, "{alone:?}");
        assert_eq!(alone.redirectable == 0, class == Class::P, "distribution builds have no pads: {alone:?}");
    }
}
