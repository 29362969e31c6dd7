//! The calls as a peer makes them, in a scratch directory.

use serde_json::json;

use super::super::wire::cwd_uri;
use super::*;

struct Calls {
    handles: Arc<FileHandles>,
    scratch: tempfile::TempDir,
}

impl Calls {
    fn new() -> Self {
        Self { handles: Arc::default(), scratch: tempfile::tempdir().expect("a directory") }
    }

    fn at(&self, name: &str) -> String {
        cwd_uri(&self.path(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn call(&self, name: &str, params: Value) -> Result<Value, i64> {
        let params = serde_json::value::to_raw_value(&params).expect("params");
        let outcome = perform(name, &params, &self.handles).expect("a call")();
        outcome.map(|answer| serde_json::from_str(answer.get()).expect("json")).map_err(|error| error.code)
    }
}

#[test]
fn files_are_written_read_copied_and_removed_as_the_protocol_says() {
    let calls = Calls::new();
    let file = calls.at("a b");
    assert_eq!(calls.call("fs/writeFile", json!({"path": file, "dataBase64": "aGVsbG8="})), Ok(json!({})));
    assert_eq!(calls.call("fs/readFile", json!({"path": file})), Ok(json!({"dataBase64": "aGVsbG8="})));
    // The older dialect's path.
    assert_eq!(calls.call("fs/readFile", json!({"path": calls.path("a b")})), Ok(json!({"dataBase64": "aGVsbG8="})));
    let copy = json!({"sourcePath": file, "destinationPath": calls.at("c"), "recursive": false});
    assert_eq!(calls.call("fs/copy", copy), Ok(json!({})));
    let found = calls.call("fs/getMetadata", json!({"path": calls.at("c")})).expect("it is there");
    assert_eq!((&found["isFile"], &found["size"], &found["isSymlink"]), (&json!(true), &json!(5), &json!(false)));
    assert_eq!(calls.call("fs/createDirectory", json!({"path": calls.at("d/e")})), Ok(json!({})));
    std::os::unix::fs::symlink("nowhere", calls.path("dangling")).expect("a link");
    std::os::unix::fs::symlink("c", calls.path("link")).expect("a link");
    let listed = calls.call("fs/readDirectory", json!({"path": calls.at(".")})).expect("a list");
    let mut names: Vec<_> =
        listed["entries"].as_array().expect("a list").iter().map(|e| e["fileName"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    assert_eq!(names, ["a b", "c", "d", "link"]);
    let link = calls.call("fs/getMetadata", json!({"path": calls.at("link")})).expect("it is there");
    assert_eq!((&link["isFile"], &link["isSymlink"]), (&json!(true), &json!(true)));
    let tree = json!({"sourcePath": calls.at("d"), "destinationPath": calls.at("f"), "recursive": true});
    assert_eq!(calls.call("fs/copy", tree), Ok(json!({})));
    assert!(calls.path("f/e").is_dir());
    assert_eq!(calls.call("fs/remove", json!({"path": calls.at("d")})), Ok(json!({})));
    assert_eq!(calls.call("fs/remove", json!({"path": calls.at("d")})), Ok(json!({})), "gone is gone");
    let whole = calls.call("fs/canonicalize", json!({"path": calls.at("f/../c")})).expect("it is there");
    assert_eq!(whole["path"], json!(cwd_uri(&calls.path("c").canonicalize().expect("it is there"))));
}

#[test]
fn each_refusal_has_its_code() {
    let calls = Calls::new();
    std::fs::create_dir_all(calls.path("full/x")).expect("a directory");
    std::os::unix::fs::symlink("nowhere", calls.path("dangling")).expect("a link");
    nix::unistd::mkfifo(&calls.path("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let large = std::fs::File::create(calls.path("large")).expect("a file");
    large.set_len(READ_BYTES + 1).expect("its length");
    let (none, full, pipe) = (calls.at("none"), calls.at("full"), calls.at("pipe"));
    for (name, params, code) in [
        ("fs/getMetadata", json!({"path": none}), -32004),
        ("fs/getMetadata", json!({"path": calls.at("dangling")}), -32004),
        ("fs/readFile", json!({"path": none}), -32004),
        ("fs/readFile", json!({"path": full}), -32600),
        ("fs/readFile", json!({"path": pipe}), -32600),
        ("fs/readFile", json!({"path": calls.at("large")}), -32600),
        ("fs/readFile", json!({"path": "relative"}), -32602),
        ("fs/readFile", json!({"path": "file://elsewhere/x"}), -32602),
        ("fs/readFile", json!({"path": none, "sandbox": {"mode": "strict"}}), -32602),
        ("fs/readFile", json!({}), -32602),
        ("fs/writeFile", json!({"path": calls.at("no/parent"), "dataBase64": ""}), -32004),
        ("fs/writeFile", json!({"path": none, "dataBase64": "!"}), -32600),
        ("fs/createDirectory", json!({"path": full, "recursive": false}), -32603),
        ("fs/remove", json!({"path": full, "recursive": false}), -32603),
        ("fs/remove", json!({"path": none, "force": false}), -32004),
        ("fs/readDirectory", json!({"path": none}), -32004),
        ("fs/copy", json!({"sourcePath": full, "destinationPath": none, "recursive": false}), -32600),
        ("fs/copy", json!({"sourcePath": full, "destinationPath": calls.at("full/x/y"), "recursive": true}), -32600),
        ("fs/copy", json!({"sourcePath": pipe, "destinationPath": none, "recursive": false}), -32600),
        ("fs/copy", json!({"sourcePath": none, "destinationPath": full, "recursive": false}), -32004),
        ("fs/open", json!({"handleId": "h", "path": none}), -32004),
        ("fs/open", json!({"handleId": "h", "path": pipe, "mode": "replace"}), -32600),
        ("fs/open", json!({"handleId": "h", "path": full, "mode": "other"}), -32602),
        ("fs/readBlock", json!({"handleId": "h", "offset": 0, "len": 1}), -32004),
        ("fs/writeBlock", json!({"handleId": "h", "offset": 0, "chunk": ""}), -32004),
    ] {
        assert_eq!(calls.call(name, params.clone()), Err(code), "{name} {params}");
    }
    assert!(calls.path("full/x").is_dir(), "nothing was removed");
}

#[test]
fn a_file_is_read_in_blocks_and_replaced_when_it_is_closed() {
    let calls = Calls::new();
    std::fs::write(calls.path("f"), "old").expect("a file");
    std::fs::set_permissions(calls.path("f"), std::os::unix::fs::PermissionsExt::from_mode(0o640)).expect("a mode");
    let open =
        |id: &str, mode: &str| calls.call("fs/open", json!({"handleId": id, "path": calls.at("f"), "mode": mode}));
    assert_eq!(open("r", "read"), Ok(json!({"handleId": "r"})));
    assert_eq!(open("r", "read"), Err(-32600));
    let read = |at: u64, len: u64| calls.call("fs/readBlock", json!({"handleId": "r", "offset": at, "len": len}));
    assert_eq!(read(0, 2), Ok(json!({"chunk": "b2w=", "eof": false})));
    assert_eq!(read(1, 2), Ok(json!({"chunk": "bGQ=", "eof": true})));
    assert_eq!(read(9, 2), Ok(json!({"chunk": "", "eof": true})));
    assert_eq!((read(0, 0), read(0, 1_048_577)), (Err(-32602), Err(-32602)));
    assert!(open("w", "replace").is_ok());
    let write =
        |at: u64, text: &str| calls.call("fs/writeBlock", json!({"handleId": "w", "offset": at, "chunk": text}));
    assert_eq!((write(2, "!"), write(0, "bmU=")), (Err(-32602), Ok(json!({}))));
    assert_eq!(write(2, "dyE="), Ok(json!({})));
    assert_eq!(std::fs::read_to_string(calls.path("f")).expect("the old one"), "old");
    let close = |id: &str| calls.call("fs/close", json!({"handleId": id}));
    assert_eq!((close("w"), close("w"), close("never")), (Ok(json!({})), Ok(json!({})), Ok(json!({}))));
    assert_eq!(std::fs::read_to_string(calls.path("f")).expect("the new one"), "new!");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(calls.path("f")).expect("it is there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o640);
    assert_eq!(read(0, 3), Ok(json!({"chunk": "b2xk", "eof": true})), "who reads the old one still does");
    // What is not closed leaves nothing.
    assert!(open("x", "replace").is_ok());
    assert_eq!(std::fs::read_dir(calls.scratch.path()).expect("a list").count(), 2);
    calls.handles.0.lock().expect("the handles").clear();
    assert_eq!(std::fs::read_dir(calls.scratch.path()).expect("a list").count(), 1);
}

#[test]
fn open_files_are_counted() {
    let calls = Calls::new();
    std::fs::write(calls.path("f"), "").expect("a file");
    for n in 0..HANDLES {
        assert!(calls.call("fs/open", json!({"handleId": n.to_string(), "path": calls.at("f")})).is_ok());
    }
    assert_eq!(calls.call("fs/open", json!({"handleId": "more", "path": calls.at("f")})), Err(-32600));
}
