"""Records into and out of a stream engine (NATS JetStream, or any program); loaded only where one is configured.

In import order: subjects, credentials, sinks (values); protocol, nats, jetstream (the server); reader, pump (the log);
jetstream_target, program_target (where records go); service (all sinks of a daemon); engines, which alone is loaded
without a sink.
"""
