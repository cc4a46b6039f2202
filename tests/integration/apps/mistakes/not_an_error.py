from zmesh import ServerError


class Busy(ServerError):
    http_status = 200
