//! Tells the counter's reader which window has which name.

use lab::println;
use lab::report::Outcome;
use lab::tests;

use crate::window::NAMES;

tests! {
    "names" => names,
}

fn names() -> Outcome {
    for (number, name) in NAMES.iter().enumerate() {
        println!("# window {number} is {name}");
    }
    Ok(())
}
