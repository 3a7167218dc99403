//! The RDMA devices, and what an SMB server would tell its clients about them.

use crate::report::{Mark, Report};

/// Reports the devices. Returns how many ports have a link and an address.
#[cfg(feature = "verbs")]
pub(crate) fn examine(report: &mut Report) -> usize {
    use smbdirect::rdma::verbs;

    report.section("RDMA devices");
    let devices = match verbs::devices() {
        Ok(devices) => devices,
        Err(error) => {
            report.remark(Mark::Note, "devices", error.to_string(), "");
            Vec::new()
        }
    };
    if devices.is_empty() {
        report.remark(
            Mark::Note,
            "devices",
            "none",
            "`rdma link` shows those that the kernel has",
        );
    }
    for device in &devices {
        found::device(report, device);
    }
    found::advertised(report, &devices);
    let usable = |device: &&verbs::DeviceInfo| device.active && !device.addresses.is_empty();
    devices.iter().filter(usable).count()
}

#[cfg(not(feature = "verbs"))]
pub(crate) fn examine(report: &mut Report) -> usize {
    report.section("RDMA devices");
    report.remark(
        Mark::Note,
        "devices",
        "not looked for: built without the feature verbs",
        "build with `--features verbs` (needs cmake and libclang)",
    );
    0
}

#[cfg(feature = "verbs")]
mod found {
    use std::fs;
    use std::net::IpAddr;

    use smbdirect::rdma::verbs::{DeviceInfo, Interface, interfaces};
    use smbdirect::rdma::{Exposure, Fabric};
    use smbdirect::smb2::NetworkInterface;
    use smbdirect::transport::port_for;

    use super::{Mark, Report};

    pub(super) fn device(report: &mut Report, device: &DeviceInfo) {
        let can = &device.capabilities;
        let fabric = match can.fabric {
            Fabric::Iwarp => "iWARP",
            Fabric::Roce => "RoCE",
            Fabric::Infiniband => "InfiniBand",
            _ => "another fabric",
        };
        let speed = device.speed.map(speed).unwrap_or_default();
        let text = format!(
            "port {}: {fabric}, link layer {}, {}{speed}",
            device.port, device.link_layer, device.state
        );
        let name = device.name.as_str();
        if device.active {
            report.pass(name, text);
        } else {
            let remedy = "bring its network interface up: `rdma link`, `ip link set INTERFACE up`; \
                          InfiniBand wants a subnet manager";
            report.remark(Mark::Fail, name, text, remedy);
        }
        if device.addresses.is_empty() {
            let remedy = "give its network interface an IP address: `ip address add`";
            report.remark(Mark::Fail, "  addresses", "none", remedy);
        } else {
            let addresses: Vec<String> = device.addresses.iter().map(IpAddr::to_string).collect();
            let port = port_for(can.fabric);
            let text = format!("{}; SMB Direct on port {port}", addresses.join(", "));
            report.pass("  addresses", text);
        }
        for gid in &device.gids {
            let kind = gid.kind.as_deref().unwrap_or("of no kind");
            let interface = gid.interface.as_deref().unwrap_or("no interface");
            let text = format!("{} {}, {kind}, {interface}", gid.index, gid.gid);
            report.fact("  GID", text);
        }
        let exposure = match can.exposure {
            Exposure::Window => "memory windows",
            Exposure::SoftwareWindow => "software windows",
            Exposure::Registration => "a registration per transfer",
            _ => "other means",
        };
        let invalidation = match can.remote_invalidation() {
            true => "invalidated by the peer",
            false => "invalidated by this side",
        };
        let text = format!(
            "{exposure}, {invalidation}; {} RDMA reads in flight, {} served",
            can.max_initiator_depth, can.max_responder_resources
        );
        report.fact("  exposure", text);
        for quirk in &can.quirks {
            report.fact("  quirk", quirk);
        }
    }

    /// What a server would answer to FSCTL_QUERY_NETWORK_INTERFACE_INFO ([MS-SMB2] 2.2.32.5).
    pub(super) fn advertised(report: &mut Report, devices: &[DeviceInfo]) {
        report.section("What an SMB server here would advertise");
        let entries: Vec<(Interface, NetworkInterface)> = interfaces()
            .into_iter()
            .filter(|interface| interface.up && is_for_others(interface.address))
            .map(|interface| (interface.clone(), entry(&interface, devices)))
            .collect();
        for (interface, entry) in &entries {
            let mut flags = Vec::new();
            if entry.rdma_capable {
                flags.push("RDMA_CAPABLE");
            }
            if entry.rss_capable {
                flags.push("RSS_CAPABLE");
            }
            if flags.is_empty() {
                flags.push("no flags");
            }
            let text = format!(
                "{}, interface {}, {}{}",
                entry.address,
                entry.if_index,
                flags.join(" "),
                speed(entry.link_speed)
            );
            report.fact(&interface.name, text);
        }
        if entries.is_empty() {
            let remedy = "bring an interface up and give it an address";
            report.remark(Mark::Note, "interfaces", "none", remedy);
        } else if entries.iter().all(|(_, entry)| !entry.rdma_capable) {
            let text = "not one is RDMA_CAPABLE: clients will not try SMB Direct";
            let remedy =
                "see the devices above; with the software iWARP a server may set the flag itself";
            report.remark(Mark::Note, "interfaces", text, remedy);
        }
    }

    fn entry(interface: &Interface, devices: &[DeviceInfo]) -> NetworkInterface {
        let serves =
            |device: &&DeviceInfo| device.active && device.addresses.contains(&interface.address);
        let device = devices.iter().find(serves);
        let speed = interface.speed.or(device.and_then(|device| device.speed));
        NetworkInterface {
            if_index: interface.index,
            rss_capable: receive_queues(&interface.name) > 1,
            rdma_capable: device.is_some(),
            link_speed: speed.unwrap_or(0),
            address: interface.address,
        }
    }

    fn receive_queues(interface: &str) -> usize {
        fs::read_dir(format!("/sys/class/net/{interface}/queues"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|queue| queue.file_name().to_string_lossy().starts_with("rx-"))
            .count()
    }

    /// Not the loopback, and not an address that needs a scope.
    fn is_for_others(address: IpAddr) -> bool {
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        !address.is_loopback() && !link_local
    }

    fn speed(bits: u64) -> String {
        match bits {
            0 => ", speed not known".into(),
            bits if bits.is_multiple_of(1_000_000_000) => {
                format!(", {} Gbit/s", bits / 1_000_000_000)
            }
            bits => format!(", {} Mbit/s", bits / 1_000_000),
        }
    }
}
