//! Compares our header with those of an installed SDK, where there are any:
//!
//!     NEURON_INCLUDE_DIR=/opt/aws/neuron/include cargo test -p njoule-neuron-sys headers
//!
//! One C++ file includes theirs, then ours with every type and function renamed. The compiler then compares the sizes and
//! offsets of all structs, the values of all constants, and the parameters of all functions: as many, as wide, pointers
//! where pointers are. What the installed SDK does not have yet, or has no more, is passed over and counted.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// What our header declares, read from its text.
struct Ours {
    text: String,
    constants: Vec<String>,
    functions: Vec<String>,
    /// With their fields.
    structs: Vec<(String, Vec<String>)>,
    types: Vec<String>,
}

/// How many things were compared, and which the other headers lack.
struct Compared {
    compared: usize,
    absent: Vec<String>,
}

#[test]
fn our_declarations_agree_with_the_installed_headers() {
    let Some(dir) = std::env::var_os("NEURON_INCLUDE_DIR") else {
        return println!("skipped: NEURON_INCLUDE_DIR is not set to an SDK's include directory");
    };
    let result = compare(Path::new(&dir)).unwrap_or_else(|errors| panic!("{errors}"));
    println!("{} declarations agree; not in these headers: {}", result.compared, result.absent.join(", "));
    assert!(result.compared > 100, "only {} things were compared: are these the headers?", result.compared);
}

#[test]
fn the_comparison_accepts_equal_headers_and_notices_each_kind_of_difference() {
    if Command::new("c++").arg("--version").output().is_err() {
        return println!("skipped: no C++ compiler here");
    }
    let ours = include_str!("../../include/njoule_nrt.h");
    let result = compare_with(ours).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(result.absent.is_empty(), "{:?}", result.absent);
    assert_eq!(result.compared, count_all(&Ours::read()));

    let changes = [
        ("#define NRT_RESOURCE 4", "#define NRT_RESOURCE 5", "NRT_RESOURCE"),
        ("size_t bytes_limit;", "size_t bytes_peak; size_t bytes_limit;", "nrt_vnc_memory_stats"),
        (
            "    uint64_t offset;\n    uint64_t size;",
            "    uint64_t size;\n    uint64_t offset;",
            "nrt_tensor_batch_op.offset",
        ),
        ("int32_t value, size_t size", "int64_t value, size_t size", "nrt_tensor_memset"),
        ("size_t source_offset, nrt_tensor_t *target,", "nrt_tensor_t *target,", "nrt_tensor_copy"),
        ("NRT_STATUS nrt_unload(nrt_model_t *model)", "NRT_STATUS nrt_unload(uint64_t model)", "nrt_unload"),
        ("void nrt_close(void)", "NRT_STATUS nrt_close(void)", "nrt_close"),
    ];
    let missed: Vec<_> = changes
        .into_iter()
        .filter(|(from, to, name)| {
            assert!(ours.contains(from), "{from}");
            !compare_with(&ours.replacen(from, to, 1)).err().is_some_and(|errors| errors.contains(name))
        })
        .collect();
    assert!(missed.is_empty(), "not noticed: {missed:?}");

    let without = ours.replacen("NRT_STATUS nrt_barrier(int32_t vnc, uint32_t rank, uint32_t world);", "", 1);
    assert_eq!(compare_with(&without).unwrap_or_else(|errors| panic!("{errors}")).absent, ["nrt_barrier"]);
}

/// Compares with a header of this text, standing where an SDK's would.
fn compare_with(theirs: &str) -> Result<Compared, String> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::create_dir(dir.path().join("nrt")).unwrap();
    fs::write(dir.path().join("nrt/nrt.h"), theirs.replace("NJOULE_NRT_H", "THEIR_NRT_H")).unwrap();
    compare(dir.path())
}

/// Compares with the headers in this directory, or gives the compiler's errors.
fn compare(include: &Path) -> Result<Compared, String> {
    let ours = Ours::read();
    let mut present = String::new();
    // nrt_version.h needs nrt.h before it.
    for header in ["nrt.h", "nrt_version.h", "nrt_experimental.h", "nrt_status.h", "nrt_async.h"] {
        if include.join("nrt").join(header).is_file() {
            let _ = writeln!(present, "#include \"nrt/{header}\"");
        }
    }
    if present.is_empty() {
        return Err(format!("{} has no nrt/nrt.h", include.display()));
    }
    let present = format!("#include <assert.h>\n{present}");
    // A first look tells which names theirs has at all: one small file each would take a minute.
    let preprocessed = cxx(include, &present, &["-E", "-dD", "-P"])?;
    let words: std::collections::HashSet<&str> =
        preprocessed.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).collect();
    let (mut absent, mut compared) = (Vec::new(), 0);
    let mut has = |name: &String| {
        let found = words.contains(name.as_str());
        if found {
            compared += 1
        } else {
            absent.push(name.clone())
        }
        found
    };
    let (mut before, mut after) = (String::new(), String::new());
    for name in ours.constants.iter().filter(|name| has(name)) {
        let _ = writeln!(before, "constexpr long long their_{name} = {name};\n#undef {name}");
        let _ = writeln!(after, "static_assert(their_{name} == {name}, \"{name}\");");
    }
    for name in ours.functions.iter().filter(|name| has(name)) {
        let _ = writeln!(before, "using their_{name} = decltype({name});");
        let _ = writeln!(after, "static_assert(same<their_{name}, decltype({name})>::value, \"{name}\");");
    }
    for (name, fields) in ours.structs.iter().filter(|(name, _)| has(name)) {
        let _ = writeln!(before, "using their_{name} = struct {name};");
        let _ = writeln!(after, "static_assert(sizeof(their_{name}) == sizeof(struct {name}), \"{name}\");");
        let _ = writeln!(after, "static_assert(alignof(their_{name}) == alignof(struct {name}), \"{name}\");");
        for field in fields {
            let offsets = format!("offsetof(their_{name}, {field}) == offsetof(struct {name}, {field})");
            let _ = writeln!(after, "static_assert({offsets}, \"{name}.{field}\");");
        }
    }
    let structs = ours.structs.iter().map(|(name, _)| name);
    let mut renames = String::new();
    for name in ours.functions.iter().chain(&ours.types).chain(structs) {
        let _ = writeln!(renames, "#define {name} our_{name}");
    }
    let source = format!("{present}{SAME}{before}{renames}{}{after}", ours.text);
    cxx(include, &source, &["-fsyntax-only"])?;
    Ok(Compared { compared, absent })
}

/// Runs the C++ compiler over `source`; its output, or its errors.
fn cxx(include: &Path, source: &str, arguments: &[&str]) -> Result<String, String> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = dir.path().join("compare.cpp");
    fs::write(&file, source).unwrap();
    let mut cxx = Command::new("c++");
    // Flexible arrays are C; offsetof of their structs is conditionally supported.
    cxx.args(["-std=c++17", "-w"]).args(arguments).arg("-I").arg(include).arg(&file);
    let output = cxx.output().expect("c++");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl Ours {
    /// Reads the header's own plain style: one declaration a statement, one field a line.
    fn read() -> Ours {
        let text = include_str!("../../include/njoule_nrt.h");
        let mut ours =
            Ours { text: text.to_owned(), constants: vec![], functions: vec![], structs: vec![], types: vec![] };
        let mut fields: Option<Vec<String>> = None;
        for line in ours.text.lines() {
            let words: Vec<&str> =
                line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).collect();
            if line.starts_with("#define") && words.len() == 3 {
                ours.constants.push(words[1].to_owned());
            } else if line.starts_with("typedef struct") && line.ends_with('{') {
                fields = Some(Vec::new());
            } else if line.starts_with('}') && words.len() == 1 {
                let name = words[0].to_owned();
                ours.structs.push((name.trim_end_matches("_t").to_owned(), fields.take().unwrap_or_default()));
                ours.types.push(name);
            } else if let Some(fields) = &mut fields {
                let declared = line.split(';').next().unwrap_or("").split('[').next().unwrap_or("");
                let name = declared.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or("");
                fields.push(name.to_owned());
            } else if line.starts_with("typedef") {
                ours.types.extend(words.last().map(|w| (*w).to_owned()));
            } else if let Some((head, _)) = line.split_once('(')
                && !line.starts_with([' ', '/', '#'])
            {
                ours.functions.extend(head.rsplit([' ', '*']).next().map(str::to_owned));
            }
        }
        ours
    }
}

fn count_all(ours: &Ours) -> usize {
    ours.constants.len() + ours.functions.len() + ours.structs.len()
}

/// Two function types that a caller cannot tell apart: as many parameters, each as wide, pointers where pointers are.
const SAME: &str = r"
#include <cstddef>
#include <type_traits>
template <class A, class B> struct alike {
    static constexpr bool value = sizeof(A) == sizeof(B) && std::is_pointer<A>::value == std::is_pointer<B>::value;
};
template <class B> struct alike<void, B> { static constexpr bool value = std::is_void<B>::value; };
template <class A> struct alike<A, void> { static constexpr bool value = false; };
template <> struct alike<void, void> { static constexpr bool value = true; };
template <class A, class B> struct same { static constexpr bool value = false; };
template <class R, class Q> struct same<R(), Q()> { static constexpr bool value = alike<R, Q>::value; };
template <class R, class A, class... As, class Q, class B, class... Bs> struct same<R(A, As...), Q(B, Bs...)> {
    static constexpr bool value = alike<A, B>::value && same<R(As...), Q(Bs...)>::value;
};
";
