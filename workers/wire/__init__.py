"""What the HTTP half and the model half share: messages, connections, shared memory."""
