use super::*;
use alloc::string::ToString;
use alloc::vec;

fn vm(name: &str) -> VmPlan {
    VmPlan {
        config: VmConfig {
            name: name.to_string(),
            memory: 512 << 20,
            vcpus: 1,
            cpus: vec![],
            slice: SLICE_MS,
            cmdline: "console=ttyS0".to_string(),
            guest: GuestKind::Linux,
            console: Console::Serial,
            exec: false,
            on_reset: OnReset::Restart,
            entropy: false,
            disks: vec![],
            nics: vec![],
            functions: vec![],
        },
        monitor: MONITOR.to_string(),
        kernel: "guests/linux/kernel".to_string(),
        initrd: vec!["guests/linux/initrd".to_string()],
        restart: Restart { after: RestartAfter::Crash, limit: Some(3), ..Restart::NEVER },
        disks: vec![],
        switches: vec![],
        functions: vec![],
    }
}

fn system(vms: Vec<VmPlan>) -> SystemPlan {
    SystemPlan { name: "test".to_string(), vms, ..SystemPlan::default() }
}

#[test]
fn a_plan_survives_encoding() {
    let plan = system(vec![vm("a"), vm("b")]);
    assert_eq!(SystemPlan::decode(&plan.encode()), Ok(plan.clone()));
    assert_eq!(plan.validate(), Ok(()));
    let config = plan.vms[0].config.clone();
    assert_eq!(VmConfig::decode(&config.encode()), Ok(config));
}

#[test]
fn foreign_bytes_are_told_apart() {
    let mut bytes = system(vec![vm("a")]).encode();
    assert_eq!(SystemPlan::decode(&[]), Err(DecodeError::NotOne));
    assert_eq!(SystemPlan::decode(&bytes[..6]), Err(DecodeError::NotOne));
    assert_eq!(VmConfig::decode(&bytes), Err(DecodeError::NotOne));
    for cut in HEADER..bytes.len() {
        assert_eq!(SystemPlan::decode(&bytes[..cut]), Err(DecodeError::Malformed), "cut at {cut}");
    }
    bytes.push(0);
    assert_eq!(SystemPlan::decode(&bytes), Err(DecodeError::Malformed));
    bytes[4] = 9;
    assert_eq!(SystemPlan::decode(&bytes), Err(DecodeError::Version(9)));
    assert_eq!(DecodeError::Version(9).to_string(), "has version 9, this program reads version 7");
}

#[test]
fn impossible_plans_are_refused() {
    let with = |change: fn(&mut VmConfig)| {
        let mut plan = vm("a");
        change(&mut plan.config);
        system(vec![plan]).validate()
    };
    assert_eq!(system(vec![]).validate(), Err(PlanError::Empty));
    assert_eq!(system(vec![vm("a"); 65]).validate(), Err(PlanError::TooMany(65)));
    assert_eq!(system(vec![vm("a"), vm("a")]).validate(), Err(PlanError::SameName("a".to_string())));
    assert_eq!(with(|c| c.memory = 0), Err(PlanError::BadMemory("a".to_string(), 0)));
    assert_eq!(with(|c| c.memory = (5 << 20) + 4096), Err(PlanError::BadMemory("a".to_string(), 5246976)));
    assert_eq!(with(|c| c.vcpus = 0), Err(PlanError::BadVcpus("a".to_string(), 0)));
    assert_eq!(with(|c| c.vcpus = 17), Err(PlanError::BadVcpus("a".to_string(), 17)));
    assert_eq!(with(|c| c.vcpus = 16), Ok(()));
    assert_eq!(with(|c| c.cpus = vec![3, 17]), Err(PlanError::BadCpu("a".to_string(), 17)));
    assert_eq!(with(|c| c.slice = 0), Err(PlanError::NoSlice("a".to_string())));
    assert_eq!(with(|c| c.name = "A b".to_string()), Err(PlanError::BadName("A b".to_string())));
    let exec = |name| {
        let mut plan = vm(name);
        plan.config.exec = true;
        plan
    };
    assert_eq!(system(vec![exec("a"), exec("b")]).validate(), Err(PlanError::SecondExec("b".to_string())));
}

fn driver(name: &str, service: Service, device: u8) -> DriverPlan {
    let device = DeviceChoice::At(PciAddress::new(0, device, 0));
    DriverPlan {
        name: name.to_string(),
        program: "nvme".to_string(),
        service,
        device,
        dma: DMA_DEFAULT,
        kill_every: None,
    }
}

/// A disk and a network for one machine.
fn devices() -> SystemPlan {
    let mut linux = vm("linux");
    linux.config.disks = vec![DiskConfig { name: "root".to_string(), read_only: false }];
    linux.config.nics = vec![NicConfig { name: "eth0".to_string(), mac: [2, 0, 0, 0, 0, 1] }];
    linux.disks = vec![DiskSource { driver: "disk0".to_string(), first: 8, sectors: 100 }];
    linux.switches = vec!["lan".to_string()];
    SystemPlan {
        drivers: vec![driver("disk0", Service::Disk, 4), driver("nic0", Service::Network, 5)],
        switches: vec![SwitchPlan { name: "lan".to_string(), uplink: Some("nic0".to_string()), kill_every: None }],
        ..system(vec![linux])
    }
}

#[test]
fn drivers_and_switches_know_their_clients() {
    let plan = devices();
    assert_eq!(plan.validate(), Ok(()));
    assert_eq!(SystemPlan::decode(&plan.encode()), Ok(plan.clone()));
    let config = plan.driver_config("disk0");
    let client = ClientConfig { name: "linux.root".to_string(), first: 8, sectors: 100, read_only: false };
    assert_eq!(config.clients, [client]);
    assert_eq!(DriverConfig::decode(&config.encode()), Ok(config));
    assert_eq!(plan.driver_config("nic0").clients, []);
    let config = plan.switch_config("lan");
    let port = |name: &str, mac, uplink| PortConfig { name: name.to_string(), mac, uplink };
    assert_eq!(config.ports, [port(UPLINK, None, true), port("linux.eth0", Some([2, 0, 0, 0, 0, 1]), false)]);
    assert_eq!(SwitchConfig::decode(&config.encode()), Ok(config));
}

#[test]
fn impossible_devices_are_refused() {
    let with = |change: fn(&mut SystemPlan)| {
        let mut plan = devices();
        change(&mut plan);
        plan.validate().expect_err("is refused")
    };
    let text = |name: &str| name.to_string();
    assert_eq!(with(|p| p.drivers[1].name = "lan".to_string()), PlanError::SameDevice(text("lan")));
    assert_eq!(with(|p| p.drivers[1].name = "a b".to_string()), PlanError::BadDeviceName(text("a b")));
    let at = DeviceChoice::At(PciAddress::new(0, 4, 0));
    assert_eq!(with(|p| p.drivers[1].device = p.drivers[0].device), PlanError::SameFunction(text("nic0"), at));
    assert_eq!(with(|p| p.drivers[0].dma = 100), PlanError::BadDma(text("disk0"), 100));
    assert_eq!(with(|p| p.vms[0].disks[0].driver = "x".to_string()), PlanError::NoDriver(text("x")));
    let wrong = PlanError::WrongService(text("nic0"), Service::Network);
    assert_eq!(with(|p| p.vms[0].disks[0].driver = "nic0".to_string()), wrong);
    assert_eq!(with(|p| p.vms[0].switches[0] = "x".to_string()), PlanError::NoSwitch(text("x")));
    let second = |p: &mut SystemPlan| p.switches.push(SwitchPlan { name: "b".to_string(), ..p.switches[0].clone() });
    assert_eq!(with(second), PlanError::SecondUplink(text("nic0")));
    assert_eq!(with(|p| p.vms[0].disks.clear()), PlanError::TooManyDevices(text("linux")));
    assert_eq!(with(|p| p.drivers = vec![p.drivers[0].clone(); 17]), PlanError::TooManyDrivers);
}

#[test]
fn only_readers_share_sectors() {
    let two = |first: u64, sectors: u64, read_only: [bool; 2]| {
        let mut plan = devices();
        let mut other = vm("b");
        other.config.exec = false;
        other.config.disks = plan.vms[0].config.disks.clone();
        other.disks = vec![DiskSource { first, sectors, ..plan.vms[0].disks[0].clone() }];
        plan.vms.push(other);
        plan.vms.iter_mut().zip(read_only).for_each(|(vm, read_only)| vm.config.disks[0].read_only = read_only);
        plan.validate()
    };
    let overlap = Err(PlanError::Overlap("b.root".to_string(), "linux.root".to_string()));
    assert_eq!(two(0, 8, [false; 2]), Ok(()));
    assert_eq!(two(0, 9, [false; 2]), overlap);
    assert_eq!(two(108, 0, [false; 2]), Ok(()));
    assert_eq!(two(107, 0, [true, false]), overlap);
    assert_eq!(two(107, 0, [true; 2]), Ok(()));
    assert_eq!(two(0, 0, [false, true]), overlap);
}

#[test]
fn pci_addresses() {
    let address = PciAddress::parse("00:1f.7").expect("is one");
    assert_eq!((address.bus(), address.device(), address.function()), (0, 31, 7));
    assert_eq!(address.requester(), 0xff);
    assert_eq!(PciAddress::parse("0000:0a:04.0").map(|a| a.to_string()), Some("0a:04.0".to_string()));
    for bad in
        ["", "00:20.0", "00:04.8", "00:4.0", "00:04", "0:04.0", "100:04.0", "00:04.0 ", "0001:00:04.0", "00:+4.0"]
    {
        assert_eq!(PciAddress::parse(bad), None, "{bad}");
    }
}
