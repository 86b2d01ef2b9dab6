//! What the kernel's operations cost, and how `bench` tells it.

use anyhow::{Context, Result, ensure};

use super::front::call;
use super::{BOCHS, Lab, QEMU, Test};
use crate::bench;

pub const TESTS: &[Test] = &[
    Test::new("bench::no operation costs more than recorded", |lab| bench::check(lab.emulator)),
    Test::new("bench::the table as JSON", json).only(QEMU),
    Test::new("bench::a listing names the functions", listing).only(BOCHS),
    Test::new("bench::what cannot be measured is said", refused).only(QEMU),
    Test::new("bench::requests to a disk stay within their limits", requests).only(QEMU).long(),
];

/// The figures that have a limit, all of which hold.
const LIMITED: [&str; 4] = ["io.read.32.times", "io.read.32.exits", "io.write.32.times", "io.write.32.exits"];

fn requests(_: &Lab) -> Result<()> {
    let (status, output, error) = call(&["bench", "io", "--json"])?;
    ensure!(status == 0, "status {status}: {output}{error}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&output)?;
    for name in LIMITED {
        let row = rows.iter().find(|row| row["name"] == name).context("no such figure")?;
        let (ours, most) = row["ours"].as_f64().zip(row["most"].as_f64()).context("no number")?;
        // Nothing can be had for less than Linux' own part, or with no exit at all.
        let least = if name.ends_with("times") { 1.0 } else { 0.0 };
        ensure!(least < ours && ours <= most, "{name}: {ours}, at most {most}");
    }
    Ok(())
}

fn json(_: &Lab) -> Result<()> {
    let (status, output, error) = call(&["bench", "ipc", "--json"])?;
    ensure!(status == 0, "status {status}: {output}{error}");
    let rows: Vec<serde_json::Value> = serde_json::from_str(&output)?;
    let row = rows.iter().find(|row| row["name"] == "ipc.cross_pd.0").context("no such figure")?;
    ensure!(row["unit"] == "kernel instructions" && row["method"].is_string() && row["peer"].is_null(), "{row}");
    // From two address spaces to the kernel and back; each message has left the caller's.
    ensure!(row["counts"]["cr3"] == 2 && row["ours"].as_f64() == row["counts"]["kernel"].as_f64(), "{row}");
    Ok(())
}

fn listing(_: &Lab) -> Result<()> {
    let (status, output, error) = call(&["bench", "exit.vmx.cpuid", "--listing"])?;
    ensure!(status == 0, "status {status}: {output}{error}");
    let place = |text: &str| output.lines().position(|line| line.contains(text)).with_context(|| text.to_string());
    let (exit, handler, entry) = (place("cpuid")?, place("sysenter")?, place("vmresume")?);
    ensure!(exit < handler && handler < entry && output.contains("vmx_event:"), "{output}");
    Ok(())
}

fn refused(_: &Lab) -> Result<()> {
    let cases: [(&[&str], &str); 4] = [
        (&["bench", "ipc.nonsense"], "error: there is no figure \"ipc.nonsense\"; there are ipc.same_pd.0, "),
        (&["bench", "exit.vmx", "--on", "qemu"], "error: none of these figures is counted on qemu"),
        (&["bench", "ipc", "--listing"], "error: --listing takes one figure's name"),
        (&["bench", "sm.up", "--kernel", "/nowhere/kernel"], "error: not measured: sm.up"),
    ];
    for (arguments, expected) in cases {
        let (status, output, error) = call(arguments)?;
        ensure!(status == 1 && error.contains(expected), "{arguments:?}: status {status}: {output}{error}");
        ensure!(output.lines().all(|line| line.contains("not measured: ")), "{arguments:?}: {output}");
    }
    Ok(())
}
