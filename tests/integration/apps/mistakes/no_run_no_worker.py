from zmesh import Server

server = Server()
