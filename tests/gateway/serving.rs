//! All of the gateway: reads and writes by RDMA over the software iWARP, and what can go wrong.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use smbdirect::rdma::RemoteAccess;
use smbdirect::transport::tcp::Tcp;
use smbdirect::transport::{Close, Error, Transport, TransportExt};

use crate::connections::Connections;
use crate::smb2::*;
use crate::world::*;

fn file_world(file: Vec<u8>) -> (Server, World) {
    let server = Server::new(file, file_server);
    let world = World::new(&Choice::of(&server));
    (server, world)
}

#[test]
fn data_goes_by_rdma_both_ways() {
    let (server, world) = file_world(Vec::new());
    let client = world.client(0x0311);
    let mut id = 0;
    for channel in [V1, INVALIDATE] {
        for len in [1, 4096, 100_001, (1 << 20) + 1, 3 << 20] {
            let data = content(len);
            id += 2;
            let answer = client.write(id, &data, channel);
            assert_eq!((status(&answer), get32(&answer, 68)), (SUCCESS, len as u32));
            assert_eq!(answer.invalidated().is_some(), channel == INVALIDATE);
            let seen = server.seen();
            assert_eq!((command(&seen), seen.len()), (WRITE, 112 + len));

            let (answer, memory) = client.read(id + 1, len as u32, channel);
            assert_eq!(status(&answer), SUCCESS);
            assert_eq!(
                (answer.len(), get32(&answer, 68), get32(&answer, 72)),
                (80, 0, len as u32)
            );
            assert_eq!(answer.invalidated().is_some(), channel == INVALIDATE);
            assert!(memory[..] == data, "{len} bytes read are those written");
            assert_eq!(server.seen().len(), 113);
        }
    }
    // Beyond the end of the file there is less, and then an error; both invalidate.
    let len = 3 << 20;
    let (answer, memory) = client.read(id + 2, len + 1000, INVALIDATE);
    assert_eq!(get32(&answer, 72), len);
    assert!(answer.invalidated().is_some());
    assert!(
        memory[len as usize..].iter().all(|byte| *byte == 0xEE),
        "untouched"
    );
    let mut exposed = client.expose(&[0xEE; 100], RemoteAccess::Write);
    exposed.offer_invalidation();
    client.send(&at(
        read(id + 3, 100, INVALIDATE, exposed.descriptors()),
        1 << 30,
    ));
    let answer = client.receive();
    assert_eq!(
        (status(&answer), answer.invalidated().is_some()),
        (END_OF_FILE, true)
    );
    exposed.reclaim().wait().expect("the memory");

    let stats = client.channel.stats();
    assert_eq!(stats.remote_invalidations, 12);
    assert!(
        stats.bytes_received < 10_000,
        "{} bytes in messages",
        stats.bytes_received
    );
    drop(client);
    let line = world.line();
    assert!(line.contains("\"end\":\"closed by the client\""), "{line}");
    assert!(
        line.contains("\"placed_reads\":12,\"placed_writes\":10,"),
        "{line}"
    );
}

#[test]
fn many_requests_of_many_clients_share_little_memory() {
    let server = Server::new(content(1 << 20), file_server);
    let mut choice = Choice::of(&server);
    choice.max_memory = 256 << 10;
    let world = World::new(&choice);
    let file = content(1 << 20);
    thread::scope(|scope| {
        for seed in 0..3_u64 {
            let client = world.client(0x0311);
            let file = &file;
            scope.spawn(move || {
                let mut under_way = std::collections::HashMap::new();
                for id_ in 1..=80_u64 {
                    let len = 1 + (id_ * 7919 + seed * 104_729) % 150_000;
                    let offset = (id_ * 31_337) % 800_000;
                    let mut exposed = client.expose(&vec![0; len as usize], RemoteAccess::Write);
                    exposed.offer_invalidation();
                    let request = read(id_, len as u32, INVALIDATE, exposed.descriptors());
                    client.send(&at(request, offset));
                    under_way.insert(id_, (offset as usize, exposed));
                }
                while !under_way.is_empty() {
                    let answer = client.receive();
                    let (offset, exposed) = under_way.remove(&id(&answer)).expect("one of ours");
                    assert_eq!(status(&answer), SUCCESS);
                    let memory = exposed.reclaim().wait().expect("the memory");
                    assert!(memory[..] == file[offset..offset + memory.len()]);
                }
            });
        }
    });
}

#[test]
fn writes_wait_for_memory_and_none_is_lost() {
    let server = Server::new(Vec::new(), file_server);
    let mut choice = Choice::of(&server);
    choice.max_memory = 128 << 10;
    let world = World::new(&choice);
    let client = world.client(0x0311);
    let data = content(40 * 50_000);
    let mut exposed = Vec::new();
    for (i, piece) in data.chunks(50_000).enumerate() {
        let memory = client.expose(piece, RemoteAccess::Read);
        let request = write(1 + i as u64, piece.len() as u32, V1, memory.descriptors());
        client.send(&at(request, 50_000 * i as u64));
        exposed.push(memory);
    }
    for _ in 0..exposed.len() {
        assert_eq!(status(&client.receive()), SUCCESS);
    }
    let (_, memory) = client.read(99, data.len() as u32, V1);
    assert!(memory[..] == data);
}

#[test]
fn what_the_gateway_refuses_is_an_echo_to_the_server() {
    let (server, world) = file_world(content(5000));
    let client = world.client(0x0311);
    client.send(&read(7, 0, V1, &memory(7, 10, 10)));
    let answer = client.receive();
    let seen = server.seen();
    assert_eq!((command(&seen), id(&seen)), (ECHO, 7));
    assert_eq!(
        (command(&answer), status(&answer)),
        (READ, INVALID_PARAMETER)
    );
    // The credits are the server's.
    assert_eq!(get16(&answer, 14), 200 + 7);
    let (answer, memory) = client.read(8, 5000, V1);
    assert_eq!(status(&answer), SUCCESS);
    assert!(memory[..] == content(5000));
}

#[test]
fn interim_responses_pass_without_invalidation() {
    let server = Server::new(content(100_000), |tcp, message, file| {
        reply(tcp, &interim(message));
        file_server(tcp, message, file);
    });
    let world = World::new(&Choice::of(&server));
    let client = world.client(0x0311);
    // `finish` sees to it that the interim response invalidates nothing.
    let (answer, memory) = client.read(1, 100_000, INVALIDATE);
    assert!(answer.invalidated().is_some() && memory[..] == content(100_000));
    let answer = client.write(2, &content(70_000), INVALIDATE);
    assert!(answer.invalidated().is_some());
}

#[test]
fn compounds_keep_their_order_and_each_token_its_message() {
    let (server, world) = file_world(content(100_000));
    let client = world.client(0x0311);
    let data: Vec<u8> = content(3333).into_iter().rev().collect();
    let mut source = client.expose(&data, RemoteAccess::Read);
    let mut target = client.expose(&[0; 5000], RemoteAccess::Write);
    source.offer_invalidation();
    target.offer_invalidation();
    let request = compound(&[
        plain(CREATE, 1),
        write(2, 3333, INVALIDATE, source.descriptors()),
        read(3, 5000, INVALIDATE, target.descriptors()),
        read(4, 0, V1, &memory(4, 1, 1)),
        plain(CLOSE, 5),
    ]);
    client.send(&request);
    let answers: Vec<_> = (0..4).map(|_| client.receive()).collect();
    let seen = server.seen();
    let commands: Vec<u16> = split(&seen).into_iter().map(command).collect();
    assert_eq!(commands, [CREATE, WRITE, READ, ECHO, CLOSE]);
    // What follows data comes when that is posted: the order of messages is not that of members.
    let mut ids: Vec<u64> = answers.iter().flat_map(|a| split(a)).map(id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    let invalidated = answers
        .iter()
        .filter(|answer| answer.invalidated().is_some());
    assert_eq!(invalidated.count(), 2);
    let memory = target.reclaim().wait().expect("the memory");
    // The server answers in order: the READ sees what the WRITE wrote.
    assert!(memory[..3333] == data && memory[3333..] == content(100_000)[3333..5000]);
}

#[test]
fn hostile_clients_end_and_others_go_on() {
    let (_server, world) = file_world(content(10_000));
    let good = world.client(0x0311);
    let mut loops = compound(&[plain(CREATE, 1), plain(CLOSE, 2)]);
    put32(&mut loops, 20, 8);
    let mut beyond = loops.clone();
    put32(&mut beyond, 20, 1 << 20);
    let mut header_ = plain(CREATE, 1);
    put16(&mut header_, 4, 65);
    let placed = |id| write(id, 100, V1, &memory(id, 100, 100));
    let hostile: [(&[u8], &str); 6] = [
        (
            b"GET / HTTP/1.1\r\n\r\n",
            "the client sent what is no SMB message",
        ),
        (&[0xFE, b'S', b'M', b'B', 64, 0], "has 6 bytes of 64"),
        (&loops, "has NextCommand 8"),
        (&beyond, "has NextCommand 1048576"),
        (&header_, "has StructureSize 65"),
        (
            &compound(&[placed(1), placed(1)]),
            "used message id 1 twice",
        ),
    ];
    for (message, reason) in hostile {
        let client = world.client(0x0311);
        client.send(message);
        client.ends();
        let line = world.line();
        assert!(line.contains(reason), "{line}");
    }
    // Memory that it does not have: the RDMA connection ends.
    let memory_ = memory(1, 4096, 4096);
    for (message, reason) in [
        (read(1, 4096, V1, &memory_), "not valid, or not any more"),
        (write(1, 4096, INVALIDATE, &memory_), "remote access error"),
    ] {
        let client = world.client(0x0311);
        client.send(&message);
        client.ends();
        let line = world.line();
        assert!(line.contains(reason), "{line}");
    }
    // Channel information that lies is refused, and the connection lives.
    let client = world.client(0x0311);
    for (id_, (at, value)) in (1..).zip([(108, 0xffff), (110, 0xffff), (108, 3), (110, 8)]) {
        let mut message = read(id_, 4096, V1, &memory(id_, 4096, 4096));
        put16(&mut message, at, value);
        client.send(&message);
        assert_eq!(status(&client.receive()), INVALID_PARAMETER);
    }
    let (answer, memory) = good.read(1, 10_000, INVALIDATE);
    assert_eq!(status(&answer), SUCCESS);
    assert!(memory[..] == content(10_000));
}

#[test]
fn a_wrong_server_has_a_clear_line() {
    let reason = |script: Script, request: &[u8]| {
        let server = Server::new(content(5000), script);
        let world = World::new(&Choice::of(&server));
        let client = world.client(0x0311);
        client.send(request);
        client.ends();
        world.line()
    };
    let request = read(5, 100, V1, &memory(5, 100, 100));
    let line = reason(
        |tcp, message, file| {
            let mut signed = file_answer(message, file);
            put32(&mut signed, 16, RESPONSE | SIGNED);
            reply(tcp, &signed);
        },
        &request,
    );
    assert!(line.contains("`server signing` of the backend"), "{line}");
    let line = reason(
        |tcp, message, _| reply(tcp, &read_answer(message, SUCCESS, &[0; 101])),
        &request,
    );
    assert!(
        line.contains("answered a READ of 100 bytes with 101"),
        "{line}"
    );
    let line = reason(
        |tcp, message, _| reply(tcp, &read_answer(message, SUCCESS, &vec![0; 2 << 20])),
        &read(5, 1 << 20, NONE, &[]),
    );
    assert!(line.contains("`smb2 max read`"), "{line}");
    let line = reason(|tcp, _, _| reply(tcp, b"what is that?"), &request);
    assert!(
        line.contains("the backend sent what is no SMB message"),
        "{line}"
    );
    let line = reason(|tcp, _, _| tcp.close(Close::Abort), &request);
    assert!(line.contains("closed by the backend"), "{line}");
}

/// Amid the data of a READ, with a FIN or a reset: none of it is placed.
#[test]
fn a_server_that_breaks_off_amid_data_has_none_placed() {
    for reset in [false, true] {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = Server::new(Vec::new(), file_server);
        let mut choice = Choice::of(&server);
        choice.backend = listener.local_addr().unwrap().to_string();
        let world = World::new(&choice);
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            frame_from(&mut stream);
            let answer = negotiate_answer(0x0311, 8 << 20, 8 << 20);
            frame_to(&mut stream, &answer, answer.len());
            let answer = logged_in(&frame_from(&mut stream));
            frame_to(&mut stream, &answer, answer.len());
            let answer = read_answer(&frame_from(&mut stream), SUCCESS, &content(1 << 20));
            frame_to(&mut stream, &answer, 600_000);
            if reset {
                // What is left unread makes a reset of the end.
                stream.peek(&mut [0]).unwrap();
            }
        });
        let client = world.client(0x0311);
        let exposed = client.expose(&[0xEE; 1 << 20], RemoteAccess::Write);
        client.send(&read(5, 1 << 20, V1, exposed.descriptors()));
        if reset {
            client.send(&plain(CREATE, 6));
        }
        serving.join().unwrap();
        client.ends();
        let memory = exposed.reclaim().wait().expect("the memory");
        assert!(memory.iter().all(|byte| *byte == 0xEE), "untouched");
        let line = world.line();
        assert!(line.contains("\"end\":\"backend: "), "{line}");
    }
}

fn frame_from(stream: &mut TcpStream) -> Vec<u8> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).unwrap();
    let mut message = vec![0; u32::from_be_bytes(len) as usize];
    stream.read_exact(&mut message).unwrap();
    message
}

/// So many bytes of the message, behind the length of all of it.
fn frame_to(stream: &mut TcpStream, message: &[u8], bytes: usize) {
    let len = (message.len() as u32).to_be_bytes();
    let frame = [&len, &message[..bytes]].concat();
    stream.write_all(&frame).unwrap();
}

/// Where something else than an SMB server is, or nothing.
#[test]
fn a_server_that_is_none_has_a_clear_line() {
    let choice = |address: std::net::SocketAddr| Choice {
        backend: address.to_string(),
        backend_timeout: Duration::from_millis(300),
        max_memory: 1 << 20,
        max_connections: 4,
        max_per_client: 4,
        watch: false,
        door_is_blind: false,
    };
    // An address of its own: nobody else takes the port when it is free.
    let listener = TcpListener::bind(("127.0.0.56", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    // It accepts, and says nothing.
    let world = World::new(&choice(address));
    let client = world.bare_client();
    client.send(&plain(NEGOTIATE, 0));
    client.ends();
    let line = world.line();
    assert!(line.contains("owes an answer and said nothing"), "{line}");
    // It speaks something else.
    let _silent = listener.accept().unwrap();
    let client = world.bare_client();
    let (mut stream, _) = listener.accept().unwrap();
    stream
        .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .unwrap();
    client.ends();
    let line = world.line();
    assert!(line.contains("does not speak SMB over TCP"), "{line}");
    // It lets nobody in.
    let client = world.bare_client();
    drop(listener.accept().unwrap());
    client.ends();
    let line = world.line();
    assert!(line.contains("without a word"), "{line}");
    // It is not there.
    drop(listener);
    world.unwelcome_client();
    let line = world.line();
    assert!(
        line.contains("the backend cannot be reached: Connection refused"),
        "{line}"
    );
    assert!(line.contains("\"backend_port\":null"), "{line}");
}

#[test]
fn connections_are_limited() {
    let server = Server::new(Vec::new(), file_server);
    let mut choice = Choice::of(&server);
    choice.max_per_client = 2;
    let world = World::new(&choice);
    let clients = [world.client(0x0311), world.client(0x0311)];
    world.unwelcome_client();
    let line = world.line();
    assert!(line.contains("\"limit\":\"--max-per-client\""), "{line}");
    drop(clients);
    world.line();
    world.line();
    while world.connections.totals().open > 0 {
        thread::yield_now();
    }
    world.client(0x0311);
    // Turned away at the door, the client came once more, with revision 1 of MPA.
    assert_eq!(world.connections.totals().refused, 2);
}

#[test]
fn a_drain_waits_for_what_is_under_way() {
    let server = Server::new(content(50_000), |tcp, message, file| {
        thread::sleep(Duration::from_millis(500));
        file_server(tcp, message, file);
    });
    let world = World::new(&Choice::of(&server));
    let client = world.client(0x0311);
    let target = client.expose(&[0; 50_000], RemoteAccess::Write);
    client.send(&read(1, 50_000, V1, target.descriptors()));
    server.seen();
    world.connections.stop(Instant::now() + LONG);
    assert_eq!(status(&client.receive()), SUCCESS);
    client.ends();
    let line = world.line();
    assert!(line.contains("\"end\":\"the gateway ends\""), "{line}");
    let memory = target.reclaim().wait().expect("the memory");
    assert!(memory[..] == content(50_000));
}

/// Also for answers in messages, of which one comes at once and the other takes its time.
#[test]
fn a_drain_waits_for_every_answer() {
    let server = Server::new(Vec::new(), |tcp, message, _| {
        if id(message) == 2 {
            reply(tcp, &answer(message, SUCCESS, &[]));
            thread::sleep(Duration::from_millis(700));
            reply(tcp, &answer(&plain(CREATE, 1), SUCCESS, &[]));
        }
    });
    let world = World::new(&Choice::of(&server));
    let client = world.client(0x0311);
    client.send(&plain(CREATE, 1));
    client.send(&plain(CREATE, 2));
    assert_eq!(id(&client.receive()), 2);
    world.connections.stop(Instant::now() + LONG);
    assert_eq!(id(&client.receive()), 1);
    client.ends();
    let line = world.line();
    assert!(line.contains("\"end\":\"the gateway ends\""), "{line}");
}

#[test]
fn a_drain_does_not_wait_for_ever() {
    let server = Server::new(Vec::new(), |_: &Tcp, _, _| {});
    let ways: [fn(&Connections); 2] = [
        |connections| connections.stop(Instant::now() + Duration::from_millis(300)),
        |connections| {
            connections.stop(Instant::now() + LONG);
            connections.stop_at_once();
        },
    ];
    for stop in ways {
        let world = World::new(&Choice::of(&server));
        let client = world.client(0x0311);
        client.send(&read(1, 100, V1, &memory(1, 100, 100)));
        server.seen();
        stop(&world.connections);
        client.ends();
        let line = world.line();
        assert!(line.contains("(--drain) is over"), "{line}");
    }
}

#[test]
fn a_server_that_does_not_read_holds_the_client_back() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let server = Server::new(Vec::new(), file_server);
    let mut choice = Choice::of(&server);
    choice.backend = listener.local_addr().unwrap().to_string();
    let world = World::new(&choice);
    let client = world.bare_client();
    let _stream = listener.accept().unwrap();
    let message = inline_write(1, &vec![1; 500_000]);
    let mut accepted = 0;
    let limit = Some(Duration::from_millis(500));
    while accepted < 400 {
        match client.channel.send_blocking(&message, limit) {
            Ok(()) => accepted += 1,
            Err(Error::WouldBlock) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(accepted < 400, "200 MB went nowhere");
}

#[test]
fn signed_bulk_data_is_warned_of_once() {
    let (_server, world) = file_world(Vec::new());
    let client = world.client(0x0311);
    let mut message = inline_write(1, &[1; 20_000]);
    put32(&mut message, 16, SIGNED);
    client.send(&message);
    assert_eq!(status(&client.receive()), SUCCESS);
    let line = world.line();
    assert!(
        line.contains("\"warning\":\"its session is signed"),
        "{line}"
    );
}
