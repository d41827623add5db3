//! U-72: what is in the object, read without asking the kernel.

use std::collections::BTreeSet;

use netmanager::dataplane::{MAPS, OBJECT, Program};
use object::{File, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};

fn object() -> File<'static> {
    File::parse(OBJECT).expect("an object file")
}

/// Names of the symbols in a section, without the local ones that mark sections and jumps.
fn symbols(object: &File<'static>, section: &str) -> BTreeSet<String> {
    let section = object.section_by_name(section).expect("a section of the object");
    let symbols = object.symbols().filter(|symbol| {
        symbol.section_index() == Some(section.index())
            && symbol.is_global()
            && symbol.kind() != SymbolKind::Section
    });
    symbols
        .map(|symbol| symbol.name().expect("a name").to_owned())
        .collect()
}

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn u72_the_object_has_the_programs_the_maps_and_the_globals_that_netmanager_knows() {
    let object = object();
    assert_eq!(
        symbols(&object, "classifier"),
        names(Program::ALL.map(Program::name)),
        "programs"
    );
    assert_eq!(symbols(&object, "maps"), names(MAPS), "maps");
    assert_eq!(
        symbols(&object, ".rodata"),
        names([
            "DECAPSULATION_FLAGS",
            "HOST_ADDRESS",
            "OAK0_INTERFACE",
            "PROBES_PER_WINDOW",
            "TRACE_WALKS",
            "TUNNEL_PORT"
        ]),
        "what is set when the programs are loaded"
    );
    let sizes: Vec<u64> = [
        "OAK0_INTERFACE",
        "TUNNEL_PORT",
        "HOST_ADDRESS",
        "PROBES_PER_WINDOW",
        "TRACE_WALKS",
        "DECAPSULATION_FLAGS",
    ]
    .iter()
    .map(|name| object.symbol_by_name(name).expect("a global").size())
    .collect();
    assert_eq!(sizes, [4, 2, 4, 4, 4, 8]);
}

#[test]
fn u72_the_object_holds_nothing_else_that_the_kernel_would_load() {
    // Code for other hooks, maps of other kinds, variables that change, would each be a section of their own.
    let expected = [
        "classifier",
        "maps",
        "license",
        ".rodata",
        ".text",
        ".BTF",
        ".BTF.ext",
    ];
    let object = object();
    let loaded: BTreeSet<String> = object
        .sections()
        .map(|section| section.name().expect("a name").to_owned())
        .filter(|name| {
            let tables = name.is_empty() || name.starts_with(".rel") || name.starts_with(".debug");
            !tables
                && ![".strtab", ".symtab", ".shstrtab", ".llvm_addrsig", ".comment"].contains(&name.as_str())
        })
        .collect();
    assert_eq!(loaded, names(expected));
}

#[test]
fn u72_the_licence_is_the_one_that_the_kernel_s_helpers_ask_for() {
    let object = object();
    let section = object
        .section_by_name("license")
        .expect("a section of the object");
    assert_eq!(section.data(), Ok(&b"GPL\0"[..]));
}

#[test]
fn u72_nothing_panics_formats_or_logs() {
    let object = object();
    let forbidden = [
        "panic",
        "rust_begin_unwind",
        "fmt",
        "AYA_LOG",
        "aya_log",
        "unwrap_failed",
    ];
    let symbols: Vec<&str> = object
        .symbols()
        .map(|symbol| symbol.name().expect("a name"))
        .collect();
    assert!(
        symbols.contains(&"from_endpoint"),
        "names are there to be searched"
    );
    for name in symbols {
        assert!(!forbidden.iter().any(|word| name.contains(word)), "{name}");
    }
    // What is not defined here the kernel would have to provide.
    let undefined: Vec<&str> = object
        .symbols()
        .filter(|symbol| symbol.is_undefined() && symbol.name() != Ok(""))
        .map(|symbol| symbol.name().expect("a name"))
        .collect();
    assert_eq!(undefined, [""; 0]);
}
