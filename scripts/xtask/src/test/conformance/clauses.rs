//! What `docs/abi.md` says about clauses and tests, against the tests that there are.

use std::collections::BTreeSet;
use std::fs;

use crate::workspace;

/// A row of the table.
struct Row {
    number: usize,
    section: String,
    proof: String,
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(workspace::root().join("docs/abi.md")).unwrap();
    let (_, table) = text.split_once("| n | clause | section | test |\n").expect("the table of clauses");
    let cells =
        |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_string()).collect::<Vec<_>>();
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|')).map(cells);
    rows.map(|cells| {
        let [number, _, section, proof] = &cells[..] else { panic!("a row of {} cells: {cells:?}", cells.len()) };
        Row { number: number.parse().unwrap(), section: section.clone(), proof: proof.clone() }
    })
    .collect()
}

/// Names of tests in the sources: each stands in a table as `"name" => function`.
fn tests() -> BTreeSet<String> {
    let folder = workspace::root().join("tests/abi/specification");
    let files = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let name = |line: &str| {
        let (name, function) = line.trim().strip_prefix('"')?.split_once("\" => ")?;
        (name.contains("::") && function.ends_with(',')).then(|| name.to_string())
    };
    files.flat_map(|text| text.lines().filter_map(name).collect::<Vec<_>>()).collect()
}

#[test]
fn every_clause_names_its_tests_and_every_test_a_clause() {
    let tests = tests();
    assert!(tests.len() > 200, "{} tests found", tests.len());
    let mut named = BTreeSet::new();
    for (index, row) in rows().into_iter().enumerate() {
        assert_eq!(row.number, index + 1);
        assert!(row.section.starts_with(|first: char| first.is_ascii_digit() || first == 'C'), "{}", row.section);
        let quoted: Vec<String> = row.proof.split('`').skip(1).step_by(2).map(String::from).collect();
        assert!(row.proof.starts_with("not tested: ") == quoted.is_empty(), "clause {}: {}", row.number, row.proof);
        // What the suite cannot do itself, the tests of systems do.
        for name in quoted.into_iter().filter(|name| !name.starts_with("conformance::") && !name.starts_with("cargo "))
        {
            assert!(tests.contains(&name), "clause {}: there is no test `{name}`", row.number);
            named.insert(name);
        }
    }
    let missing: Vec<&String> = tests.difference(&named).collect();
    assert!(missing.is_empty(), "tests of no clause: {missing:?}");
}
