"""What the processes of one job tell each other outside collectives: signed letters in one mailbox, on one port."""
