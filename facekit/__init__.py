"""What more than one of the scripts needs, and the alternatives one can choose."""
