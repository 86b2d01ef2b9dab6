//! Networks: virtual machines on a switch, and the world behind the driver of a network device.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::{Lab, QEMU, Test};

pub const TESTS: &[Test] = &[
    Test::new("network::machines reach each other and the host by virtio", |lab| reach(lab, "net")).only(QEMU),
    Test::new("network::machines reach each other and the host by e1000e", |lab| reach(lab, "net-e1000e")).only(QEMU),
    Test::new("network::64 MiB from the host arrive whole by virtio", |lab| fetch(lab, "net", 64)).only(QEMU).long(),
    Test::new("network::64 MiB from the host arrive whole by e1000e", |lab| fetch(lab, "net-e1000e", 64))
        .only(QEMU)
        .long(),
];

/// The machine with the command has ended; the other one would go on for ever.
const END: &str = "vm one: powered off";

/// Bytes of one.
pub const MEBIBYTE: usize = 1 << 20;

/// Waits until the other machine answers.
const MEET: &str = "n=0; until ping -c 1 -W 2 10.0.2.22 >/dev/null; do n=$((n + 1)); [ $n -lt 60 ] || exit 1; done";

/// The machines answer each other, the host answers and serves a file; who forges its address is not heard.
fn reach(lab: &Lab, system: &str) -> Result<()> {
    let content = noise(2 * MEBIBYTE);
    let port = serve(content.clone(), 1)?;
    let command = format!(
        "{MEET}
         ping -c 4 -s 1400 10.0.2.22 | grep -o '[0-9]* packets received'
         ping -c 4 10.0.2.2 | grep -o '[0-9]* packets received'
         wget -q -O - http://10.0.2.2:{port}/ | sha256sum
         ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up
         ping -c 2 -W 2 10.0.2.22 | grep -o '[0-9]* packets received'"
    );
    let outcome = lab.boot(system).exec(&command).until(END).timeout(3 * lab.boot_time().as_secs()).run()?;
    outcome.status(0)?;
    let expected = format!("4 packets received\n4 packets received\n{}  -\n0 packets received\n", checksum(&content));
    let text = outcome.text()?;
    ensure!(text == expected, outcome.failure(&format!("the output is {text:?}, not {expected:?}")));
    outcome.says("port one.eth0: ")?;
    Ok(())
}

/// So many mebibytes by HTTP from the host.
fn fetch(lab: &Lab, system: &str, mebibytes: usize) -> Result<()> {
    let content = noise(mebibytes * MEBIBYTE);
    let port = serve(content.clone(), 1)?;
    let command = format!("wget -q -O - http://10.0.2.2:{port}/ | sha256sum");
    let outcome = lab.boot(system).exec(&command).until(END).timeout(6 * lab.boot_time().as_secs()).run()?;
    outcome.status(0)?;
    let expected = format!("{}  -\n", checksum(&content));
    let text = outcome.text()?;
    ensure!(text == expected, outcome.failure(&format!("the output is {text:?}, not {expected:?}")));
    Ok(())
}

/// Bytes that compress badly and repeat nowhere.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state ^ state >> 29).to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// SHA-256 as `sha256sum` prints it.
pub fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Serves `content` by HTTP `times` times, in the background; returns the port on this host.
pub fn serve(content: Vec<u8>, times: usize) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(times).flatten() {
            let mut lines = BufReader::new(&stream).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
            let mut stream = &stream;
            // A guest that goes away is the test's to notice.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&content));
        }
    });
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpStream;

    #[test]
    fn the_server_serves() {
        let content = noise(100_000);
        let mut stream =
            TcpStream::connect((Ipv4Addr::LOCALHOST, serve(content.clone(), 1).expect("a port"))).expect("it listens");
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        assert!(answer.starts_with(b"HTTP/1.0 200 OK\r\n") && answer.ends_with(&content));
    }
}
