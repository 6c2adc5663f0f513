//! ARCHITECTURE.md says who may import whom; the sources must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The words in backticks.
fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Room → rooms that it may import, out of the table.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let page = std::fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    let table = page.split("| room | may import |").nth(1).expect("the table of rooms");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').map(str::to_owned).collect::<Vec<_>>());
    cells.flat_map(|cells| quoted(&cells[1]).into_iter().map(move |room| (room, quoted(&cells[2]))).collect::<Vec<_>>()).collect()
}

fn sources(room: &Path) -> Vec<PathBuf> {
    if room.is_file() {
        return vec![room.to_owned()];
    }
    let entries = std::fs::read_dir(room).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| sources(&path)).filter(|path| path.extension().is_some_and(|ext| ext == "rs")).collect()
}

/// The rooms that a text names after `crate::`.
fn imports(text: &str) -> BTreeSet<String> {
    let names = text.split("crate::").skip(1);
    names
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>())
        .filter(|name| !name.is_empty())
        .collect()
}

fn rooms() -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(top().join("crates/rowcast/src")).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path)).filter(|(room, _)| room != "lib").collect()
}

#[test]
fn every_room_imports_only_what_the_page_allows() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    for (room, path) in rooms() {
        let Some(allowed) = allowed.get(&room) else {
            wrong.push(format!("ARCHITECTURE.md does not name the room {room}"));
            continue;
        };
        for source in sources(&path) {
            for import in imports(&std::fs::read_to_string(&source).unwrap()) {
                if import != room && !allowed.contains(&import) {
                    wrong.push(format!("{} imports {import}, which ARCHITECTURE.md does not allow to {room}", source.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_page_names_only_rooms_that_exist_and_allows_no_circle() {
    let allowed = allowed();
    let existing: BTreeSet<String> = rooms().into_iter().map(|(room, _)| room).collect();
    assert_eq!(allowed.keys().cloned().collect::<BTreeSet<_>>(), existing);
    let mut settled: BTreeSet<&String> = BTreeSet::new();
    while settled.len() < allowed.len() {
        let before = settled.len();
        settled.extend(
            allowed
                .iter()
                .filter(|(_, imports)| imports.iter().all(|import| settled.contains(import)))
                .map(|(room, _)| room)
                .collect::<Vec<_>>(),
        );
        assert!(settled.len() > before, "a circle among {:?}", allowed.keys().filter(|room| !settled.contains(room)).collect::<Vec<_>>());
    }
}
